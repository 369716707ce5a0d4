"""The cells of a reproduction: what is computed, one file each, so that a killed run resumes where it was.

An arm's images lie in `images/ARM/CLASS/`, those of specific names in `specific/ARM/NAME/`, what the judge sees in them
in `cells/ARM.json`, an adapter that was fine-tuned for them in `adapters/RECIPE/`; a backbone that was
pre-trained on them is measured in `cells/ARM-BACKBONE-SEED.json`, and not kept.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from PIL import Image

import lbgen_hf
from lbgen_hf.biaslab.measure import judge_images, measure
from lbgen_hf.biaslab.scenes import CLASSES, POLYSEMOUS, SHAPE_NAMES
from lbgen_hf.devices import pick_device
from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.backbones import Backbone, load_backbone
from lbgen_hf.evaluation.benchmarks import Benchmark, Run, parse_benchmarks
from lbgen_hf.evaluation.biaslab import world
from lbgen_hf.evaluation.observers import load_observers
from lbgen_hf.evaluation.pretraining import Pretraining
from lbgen_hf.evaluation.pretraining_config import PretrainingConfig
from lbgen_hf.evaluation.scores import scores_of
from lbgen_hf.evaluation.statistics import finite_or_null
from lbgen_hf.files import sha256_of, write_atomically
from lbgen_hf.pipeline_lbgen import LORA_FILE, LbGenPipeline
from lbgen_hf.reproduction.adapters import RECIPES, describe_recipe, hash_of_models, train_adapter
from lbgen_hf.reproduction.arms import Arm, make_images, make_specific_images
from lbgen_hf.sampling import build_scheduler
from lbgen_hf.shipped import LBGEN_TINY, resolve

SCHEDULER = "dpmpp-2m"  # that of the fast preset
REPLICATES = 400

# Small backbones for 64-pixel images. The ViT embeds its patches by convolutions: with plain patches, as ViT-S has,
# it stays at chance on so few images.
BACKBONES: dict[str, dict[str, Any]] = {
    "resnet": {"model": "resnet10t", "model_args": '{"channels": [32, 48, 64, 96], "stem_width": 16}'},
    "vit": {
        "model": "xcit_nano_12_p8_224",
        "model_args": '{"depth": 3, "embed_dim": 96, "num_heads": 3, "cls_attn_layers": 1, "eta": 1.0}',
    },
}
# Weak augmentation, for colour and texture are cues here, and no flips, for place is.
RECIPE: dict[str, Any] = {
    "image_size": 64,
    "crop_pct": 1.0,
    "train_batch_size": 32,
    "learning_rate": 3e-3,
    "layer_scale": None,
    "drop_path_rate": 0.0,
    "auto_augment": "",
    "color_jitter": 0.0,
    "min_crop_area": 0.8,
    "hflip": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "random_erasing": 0.0,
    "ema_decay": 0.0,
    "held_out_fraction": 0.0,
    "num_workers": 1,
    "checkpointing_steps": 1_000_000,
}
# Metric of the report to benchmark and score.
SCORES = {
    "transfer": ("biaslab-novel", "accuracy"),
    "unbiased_accuracy": ("biaslab-validation", "accuracy"),
    "own_context_accuracy": ("biaslab-contexts", "accuracy_p0"),
    "texture_inclination": ("biaslab-cue-conflict", "texture_inclination"),
    "cb_avg": ("biaslab-contexts", "cb_avg"),
    "cb_12": ("biaslab-contexts", "cb_12"),
    "background_gap": ("biaslab-backgrounds", "background_gap"),
    "relative_gap": ("biaslab-backgrounds", "relative_gap"),
}
FEW_SHOT = "biaslab-novel-few-shot-{:g}"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every cell of a folder has in common, and which cells there are.

    Attributes:
        images_per_class: of every arm.
        num_inference_steps: of the sampling, with DPM-Solver++.
        num_train_epochs: of every backbone; as all arms have as many images, all have as many steps.
        few_shot_fractions: of the novel classes' training images, beside all of them.
        backbones: keys of `BACKBONES`.
        arms: of those that need no fine-tuning; None for all.
    """

    images_per_class: int = 32
    num_inference_steps: int = 20
    num_train_epochs: int = 30
    few_shot_fractions: tuple[float, ...] = (0.1, 0.2)
    backbones: tuple[str, ...] = ("resnet", "vit")
    arms: tuple[str, ...] | None = None

    def of_every_cell(self) -> dict[str, Any]:
        """Those that change a cell's results."""
        names = ("images_per_class", "num_inference_steps", "num_train_epochs")
        return {name: getattr(self, name) for name in names} | {"few_shot_fractions": list(self.few_shot_fractions)}


QUICK = Settings(
    images_per_class=16,
    num_inference_steps=10,
    num_train_epochs=10,
    backbones=("vit",),
    few_shot_fractions=(),
    arms=("real", "unbiased", "base", "lbgen", "context_swap"),
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One file of results.

    Attributes:
        arm: its name.
        backbone: a key of `BACKBONES`; None for what the judge sees in the images.
        seed: of the backbone's weights, batches and augmentation.
    """

    arm: str
    backbone: str | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        return self.arm if self.backbone is None else f"{self.arm}-{self.backbone}-{self.seed}"


class Cells:
    """The cells of a folder.

    Args:
        out: the folder.
        settings: of every cell.
        arms: by name.
        device: of sampling and measuring; default: the fastest. Pre-training runs where accelerate says.

    Raises:
        UserError: an adapter's folder holds none.
    """

    def __init__(self, out: Path, settings: Settings, arms: dict[str, Arm], device: str | None = None) -> None:
        self.out, self.settings, self.arms, self.device = out, settings, arms, device
        self.identity = {
            "lbgen_hf": lbgen_hf.__version__,
            "settings": settings.of_every_cell(),
            "world": world(),
            "models": hash_of_models("pipeline", "clip", "quality", "judge"),  # what samples and judges
        }
        self.adapters = {name: _adapter_identity(arm) for name, arm in arms.items()}

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's results; None where they are not there yet, or those of its arm's images, or these images.

        Raises:
            UserError: they were made with other settings, another world, another adapter or other images.
        """
        path = self._path(cell)
        if not path.is_file() or not self._path(Cell(cell.arm)).is_file():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, value in self._identity(cell).items():
            if found.get(name) != value:
                difference = _difference(name, found.get(name), value)
                raise UserError(f"{path} is of {difference}; give another --out, or delete it")
        return found if self._has_images(cell.arm) else None

    def make(self, cell: Cell, say: Callable[[str], None] = lambda message: None) -> dict[str, Any] | None:
        """Compute a cell and write it.

        Args:
            cell: which.
            say: told its name, if it is computed here.

        Returns:
            Its results; None where another process is making them, or the images of its arm.
        """
        if cell.backbone is not None and not self.read(Cell(cell.arm)):
            return None
        try:
            lock = FileLock(self.out / "cells" / f".{cell.name}.lock").acquire(timeout=0)
        except Timeout:
            return None
        with lock:
            return self.read(cell) or self._make(cell, say)

    def _make(self, cell: Cell, say: Callable[[str], None]) -> dict[str, Any]:
        say(cell.name)
        begin = time.monotonic()
        results = self._judge(cell.arm) if cell.backbone is None else self._pretrain(cell)
        content = self._identity(cell) | {"seconds": round(time.monotonic() - begin, 1), **results}
        write_atomically(self._path(cell), json.dumps(content) + "\n")
        return content

    def images(self, arm: str) -> Path:
        """The folder of an arm's images."""
        return self.out / "images" / arm

    def _has_images(self, arm: str) -> bool:
        """Whether those that the report shows are there; a user may delete them to save space."""
        return self.images(arm).is_dir() and (not self.arms[arm].is_plain_sampling or self._specific(arm).is_dir())

    def _specific(self, arm: str) -> Path:
        return self.out / "specific" / arm

    def _path(self, cell: Cell) -> Path:
        return self.out / "cells" / f"{cell.name}.json"

    def _identity(self, cell: Cell) -> dict[str, Any]:
        identity = self.identity | dataclasses.asdict(cell) | {"adapter": self.adapters[cell.arm]}
        if cell.backbone is None:
            return identity
        of_arm = json.loads(self._path(Cell(cell.arm)).read_text(encoding="utf-8"))
        return identity | {"images": of_arm["images"]}

    @functools.cached_property
    def _pipe(self) -> LbGenPipeline:
        pipe = LbGenPipeline.from_pretrained(LBGEN_TINY)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = build_scheduler(SCHEDULER, pipe.scheduler.config)
        return pipe.to(pick_device(self.device))

    @functools.cached_property
    def _observers(self) -> dict[str, Any]:
        return load_observers()

    @functools.cached_property
    def _benchmarks(self) -> list[tuple]:
        names = dict.fromkeys(name for name, _ in self._scores.values())
        return [(benchmark, benchmark.load()) for benchmark in parse_benchmarks(list(names))]

    @property
    def _scores(self) -> dict[str, tuple[str, str]]:
        fractions = self.settings.few_shot_fractions
        return SCORES | {f"few_shot_{f:g}": (FEW_SHOT.format(f), "few_shot_accuracy") for f in fractions}

    def _judge(self, name: str) -> dict[str, Any]:
        """Make an arm's images and judge them as they are stored, in 8 bits."""
        arm = self._with_adapter(self.arms[name])
        sampling = self._pipe, self.settings.images_per_class, self.settings.num_inference_steps
        pixels = _in_8_bits(make_images(arm, *sampling))
        _write_images(dict(zip(CLASSES, pixels, strict=True)), self.images(name))
        estimates = measure(judge_images(pixels / 255, CLASSES, **self._observers), replicates=REPLICATES)
        metrics = {key: [e.value, *map(_rounded, e.replicates.tolist())] for key, e in estimates.items()}
        results = {"images": hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:12], "metrics": metrics}
        if not arm.is_plain_sampling:
            return results
        specific = {key: _in_8_bits(images) for key, images in make_specific_images(arm, *sampling).items()}
        _write_images(specific, self._specific(name))
        of_names = {key: pixels[CLASSES.index(key)] for key in POLYSEMOUS} | specific
        return results | {"shapes": {key: self._count_shapes(images) for key, images in of_names.items()}}

    def _with_adapter(self, arm: Arm) -> Arm:
        """The arm with the adapter of its recipe, fine-tuned if it was not yet."""
        if arm.recipe is None:
            return arm
        folder = train_adapter(RECIPES[arm.recipe], self.out / "adapters" / arm.recipe)
        return dataclasses.replace(arm, lora=str(folder))

    def _count_shapes(self, pixels: torch.Tensor) -> dict[str, int]:
        """How many of the images (n, 3, H, W) the judge takes for each shape, the commonest first."""
        seen = self._observers["judge"].judge(pixels / 255)["shape"]
        return dict(Counter(SHAPE_NAMES[shape] for shape in seen.tolist()).most_common())

    def _pretrain(self, cell: Cell) -> dict[str, Any]:
        assert cell.backbone is not None
        assert cell.seed is not None
        work = self.out / "work" / cell.name
        shutil.rmtree(work, ignore_errors=True)
        config = PretrainingConfig(
            data=str(self.images(cell.arm)),
            output_dir=work,
            seed=cell.seed,
            num_train_epochs=self.settings.num_train_epochs,
            warmup_epochs=self.settings.num_train_epochs / 10,
            **RECIPE,
            **BACKBONES[cell.backbone],
        )
        Pretraining(config).train()
        backbone = load_backbone(work, self.device)
        run = Run(work / "features", batch_size=250)
        found = {benchmark.name: _scores_of(benchmark, backbone, images, run) for benchmark, images in self._benchmarks}
        scores: dict[str, Any] = {metric: found[name][score] for metric, (name, score) in self._scores.items()}
        if "few_shot_0.1" in scores:
            scores["few_shot_gain"] = scores["few_shot_0.1"] - scores["transfer"]
        shutil.rmtree(work)
        return {"scores": scores}


def _scores_of(benchmark: Benchmark, backbone: Backbone, images: Any, run: Run) -> dict[str, float | None]:
    """Score to value; None where the backbone is right so rarely that it is undefined."""
    data = benchmark.measure(backbone, images, run)["data"]
    estimates = scores_of(benchmark.kind, data, n_resamples=2).estimates
    return finite_or_null({name: estimate.value for name, estimate in estimates.items()})


def _in_8_bits(images: torch.Tensor) -> torch.Tensor:
    return (images * 255).round().byte()


def _rounded(value: float) -> float:
    return round(value, 5)


def _write_images(pixels: dict[str, torch.Tensor], folder: Path) -> None:
    """PNGs of each class's (n, 3, H, W) in class folders, there as a whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    for stale in (temporary, folder):
        shutil.rmtree(stale, ignore_errors=True)
    for class_name, of_class in pixels.items():
        (temporary / class_name).mkdir(parents=True)
        for index, image in enumerate(of_class):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary / class_name / f"{index:05}.png")
    os.replace(temporary, folder)


def _adapter_identity(arm: Arm) -> str | None:
    if arm.recipe is not None:
        return f"{describe_recipe(RECIPES[arm.recipe])} at scale {arm.scale:g}"
    if arm.lora is None:
        return None
    path = Path(resolve(arm.lora, "lora")) / LORA_FILE
    if not path.is_file():
        raise UserError(f"{path.parent} holds no {LORA_FILE}")
    return f"{sha256_of(path)} at scale {arm.scale:g}"


def _difference(name: str, found: Any, wanted: Any) -> str:
    """What another run had, in words."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        name = next(key for key in (*wanted, *found) if found.get(key) != wanted.get(key))
        found, wanted = found.get(name), wanted.get(name)
    return f"a run that differs in {name.replace('_', ' ')}, {found} instead of {wanted}"
