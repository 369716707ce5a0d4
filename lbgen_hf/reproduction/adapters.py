"""The adapters that `--from-scratch` fine-tunes: table 4's, controls, fewer names and steps, other languages.

Each is trained as the card of lbGen's shipped LoRA says, in float32, but for what its recipe changes, and keeps its
last step.
"""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from lbgen_hf.biaslab import MODELS
from lbgen_hf.biaslab.scenes import CLASSES
from lbgen_hf.errors import UserError
from lbgen_hf.files import sha256_of, write_atomically
from lbgen_hf.fine_tuning.card import CONFIG_FILE
from lbgen_hf.fine_tuning.config import LbGenConfig
from lbgen_hf.fine_tuning.trainer import LbGenTrainer
from lbgen_hf.shipped import LBGEN_TINY, resolve

_CLIP = MODELS / "clip"
_SETTINGS = MODELS / "lora" / CONFIG_FILE
_RECIPE_FILE = "recipe.json"
# Of every recipe. All keep their last step, so that they are compared at equal steps, as in the paper: the rule of the
# shipped LoRA kept its last too, and would stop others before they collapse. One process has one precision, and
# backbones are pre-trained in it too.
_COMMON = {"keep": "last", "mixed_precision": "no"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an adapter is made.

    Attributes:
        title: in tables.
        changes: of the card's settings, by the names of `LbGenConfig`.
        num_names: fine-tuned on so many of the class names, spread over the list; None for all.
        random_clip: the reward is a CLIP of random weights.
        clip_options: of `training/biaslab/train_clip.py`, where the reward is a CLIP trained with other options.
        images_only: what it is to show is in the images, so no backbone is pre-trained on them.
    """

    title: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    num_names: int | None = None
    random_clip: bool = False
    clip_options: tuple[str, ...] = ()
    images_only: bool = False


# The shipped LoRA's recipe once more. Even its own seed gives another LoRA on another machine or with another number of
# threads: what rounding changes grows from step to step.
_RUNS = {
    "again": Recipe("lbGen, fine-tuned again"),
    "seed_1": Recipe("lbGen, seed 1", {"seed": 1}),
    "seed_2": Recipe("lbGen, seed 2", {"seed": 2}),
}
RUNS = ("lbgen", *_RUNS)  # arms that differ in the run alone
_PRE_TRAINING_DATA = {
    # table 4
    "no_entire": Recipe("lbGen without L_en", {"entire_weight": 0.0}),
    "no_individual": Recipe("lbGen without L_in", {"individual_weight": 0.0}),
    "no_quality": Recipe("lbGen without L_q", {"quality_weight": 0.0}),
    "clip_base": Recipe("lbGen, smaller CLIP", clip_options=("--image_tower", "test_byobnet")),
    # controls: nothing to learn from, and what the authors' published code does (training/configs/upstream.yaml)
    "random_reward": Recipe("lbGen, CLIP of random weights", random_clip=True),
    "upstream": Recipe(
        "the authors' code",
        {
            "individual_weight": 0.0,
            "quality_weight": 0.0,
            "real_classes": "first",
            "discriminator_hidden_size": 3,
            "discriminator_activation": "leaky_relu",
            "discriminator_warmup_epochs": 1.0,
            "scheduler": "ddpm",
        },
    ),
}
_IMAGES_ONLY = {
    # the number of names
    "names_4": Recipe("lbGen from 4 names", num_names=4),
    "names_8": Recipe("lbGen from 8 names", num_names=8),
    # the dose
    "steps_30": Recipe("lbGen, 30 steps", {"max_train_steps": 30}),
    "steps_60": Recipe("lbGen, 60 steps", {"max_train_steps": 60}),
    "steps_120": Recipe("lbGen, 120 steps", {"max_train_steps": 120}),
    # When does it work? The reward's captions name what is marked at other rates, or what is plain as often, or its
    # scenes are themselves biased. The shipped CLIP's captions name what is marked at a rate of 0.95.
    "mention_0": Recipe("lbGen, captions name the class alone", clip_options=("--mention", "0")),
    "mention_40": Recipe("lbGen, captions name 40 % of what is marked", clip_options=("--mention", "0.4")),
    "mention_80": Recipe("lbGen, captions name 80 %", clip_options=("--mention", "0.8")),
    "mention_100": Recipe("lbGen, captions name all that is marked", clip_options=("--mention", "1")),
    "name_plain": Recipe(
        "lbGen, captions name attributes at random, plain or not", clip_options=("--mention", "0.5", "--name_plain")
    ),
    "biased_clip": Recipe("lbGen, CLIP of biased scenes", clip_options=("--bias", "0.9")),
}
RECIPES = {
    **_RUNS,
    **_PRE_TRAINING_DATA,
    **{name: dataclasses.replace(recipe, images_only=True) for name, recipe in _IMAGES_ONLY.items()},
}


def describe_recipe(recipe: Recipe) -> str:
    """What an adapter is to be, as JSON: the recipe, and the settings that it changes."""
    return json.dumps(_decisive(recipe), sort_keys=True)


def _decisive(recipe: Recipe) -> dict[str, Any]:
    decisive = {key: value for key, value in vars(recipe).items() if key not in ("title", "images_only")}
    return decisive | _COMMON | {"settings": sha256_of(_SETTINGS)}


def hash_of_models(*parts: str) -> str:
    """Of the weights of some parts of lbgen-tiny."""
    folders = (Path(resolve(LBGEN_TINY, part)) for part in parts)
    files = [file for folder in folders for file in sorted(folder.rglob("*.safetensors"))]
    return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()[:12]


def train_adapter(recipe: Recipe, folder: Path) -> Path:
    """Fine-tune an adapter into a folder, or resume it; nothing to do where it is finished.

    Returns:
        The folder.

    Raises:
        UserError: the folder is of another recipe or of other models; or as `LbGenTrainer`.
    """
    folder = folder.resolve()  # the settings name files in it: it is resumed from any working directory
    _claim(folder, _decisive(recipe) | {"models": hash_of_models("pipeline", "clip", "quality")})
    if (folder / "README.md").is_file():  # the card is written last
        return folder
    changes: dict[str, Any] = _COMMON | recipe.changes
    if recipe.num_names is not None:
        changes["class_names"] = str(_write_names(folder, recipe.num_names))
        changes["num_validation_classes"] = recipe.num_names
    if recipe.random_clip:
        changes["clip_model"] = str(_write_random_clip(folder))
    if recipe.clip_options:
        changes["clip_model"] = str(_train_clip(folder, recipe.clip_options))
    config = LbGenConfig.from_yaml(
        _SETTINGS,
        output_dir=folder,
        resume_from_checkpoint="latest",
        checkpointing_steps=10,
        checkpoints_total_limit=1,
        report_to="none",
        **changes,
    )
    return LbGenTrainer(config).train()


def _claim(folder: Path, made_of: dict[str, Any]) -> None:
    """Write down what the folder's adapter is made of, before anything is made.

    Raises:
        UserError: it was something else.
    """
    content, path = json.dumps(made_of, sort_keys=True), folder / _RECIPE_FILE
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, f"{content}\n")
    elif path.read_text(encoding="utf-8").strip() != content:
        raise UserError(
            f"{folder} was begun with another recipe or other models, see {path.name} there; delete it or give another "
            "--out"
        )


def _write_names(folder: Path, number: int) -> Path:
    path = folder / "class_names.txt"
    names = [CLASSES[i * len(CLASSES) // number] for i in range(number)]
    write_atomically(path, "".join(f"{name}\n" for name in names))
    return path


def _write_random_clip(folder: Path) -> Path:
    """The shipped CLIP's architecture and tokenizer with weights as they are before any training."""
    path = folder / "clip"
    shutil.copytree(_CLIP, path, dirs_exist_ok=True)
    config = json.loads((_CLIP / "open_clip_config.json").read_text(encoding="utf-8"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = open_clip.CLIP(**config["model_cfg"])
    save_file(clip.state_dict(), path / "open_clip_model.safetensors", metadata={"format": "pt"})
    return path


def _train_clip(folder: Path, options: tuple[str, ...]) -> Path:
    """A CLIP by the script that made the shipped one, in a process of its own; resumable as it is."""
    path, work = folder / "clip", folder / "clip_work"
    if not (path / "open_clip_model.safetensors").is_file():
        command = [sys.executable, _clip_script(), "--output_dir", folder, "--work_dir", work, *options]
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError as error:
            raise UserError(f"the CLIP of {folder} could not be trained, see above: {error}") from error
    shutil.rmtree(work, ignore_errors=True)  # rendered scenes, 0.4 GB
    return path


def _clip_script() -> Path:
    """Where it is in the wheel, or in a checkout."""
    package = MODELS.parents[1]
    folders = package / "_training_biaslab", package.parent / "training" / "biaslab"
    return next(path for folder in folders if (path := folder / "train_clip.py").is_file())
