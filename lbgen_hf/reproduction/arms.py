"""The sets of images that are compared: the arms. Each has as many images of every class."""

import contextlib
import dataclasses
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lbgen_hf.biaslab import BASE_TRAINING_SCENES
from lbgen_hf.biaslab.captions import caption_scenes
from lbgen_hf.biaslab.scenes import CLASSES, IMAGE_SIZE, POLYSEMOUS, Scenes, render, sample_scenes
from lbgen_hf.errors import UserError
from lbgen_hf.pipeline_lbgen import LbGenPipeline
from lbgen_hf.reproduction.adapters import RECIPES

REAL_BIAS = 0.6  # of the scenes that stand for a collected dataset: about what guidance makes of the base model's
NOISE_SEED = 3
_SCENE_SEED = 900_021  # away from what anything was trained on, and from the test scenes


@dataclasses.dataclass(frozen=True)
class Arm:
    """One set of training images: scenes, or samples of the base model with or without an adapter.

    Attributes:
        title: in tables.
        scenes: "biased", "unbiased" or "retrieved"; None for samples.
        lora: the adapter's folder; None for the base model.
        recipe: of an adapter that is fine-tuned first, a key of `RECIPES`.
        scale: of the adapter.
        guidance_scale: of the sampling.
        captions: the prompts name attributes at random, instead of the class alone.
        images_only: no backbone is pre-trained on them.
    """

    title: str
    scenes: str | None = None
    lora: str | None = None
    recipe: str | None = None
    scale: float = 1.0
    guidance_scale: float = 2.0
    captions: bool = False
    images_only: bool = False

    @property
    def is_plain_sampling(self) -> bool:
        """Whether it samples from class names, at the usual scale and guidance: figures 4 to 6 show such arms."""
        return not self.scenes and not self.captions and self.scale == 1.0 and self.guidance_scale == 2.0


def standard_arms(shipped: Mapping[str, str]) -> dict[str, Arm]:
    """All arms but the user's own.

    Args:
        shipped: title to folder of the shipped adapters, as `Companions.loras` has them.
    """
    arms = {
        "real": Arm("biased scenes (real)", scenes="biased"),
        "unbiased": Arm("unbiased scenes", scenes="unbiased"),
        "base": Arm("base model"),
    }
    for title, folder in shipped.items():
        name = title.lower().replace(" ", "_")
        arms[name] = Arm(title, lora=folder)
        arms[f"{name}_half"] = Arm(f"{title}, LoRA scale 0.5", lora=folder, scale=0.5)
    arms |= {
        "captions": Arm("base, varied captions", captions=True),
        "guidance_1": Arm("base, no guidance", guidance_scale=1.0),
        "guidance_4": Arm("base, guidance 4", guidance_scale=4.0),
        "retrieval": Arm("base's own training scenes (retrieval)", scenes="retrieved"),
    }
    fine_tuned = {name: Arm(of.title, recipe=name, images_only=of.images_only) for name, of in RECIPES.items()}
    return arms | fine_tuned


def parse_loras(specs: Sequence[str], taken: Container[str]) -> dict[str, Arm]:
    """Arms from "NAME=FOLDER".

    Args:
        specs: as the user gave them.
        taken: names of all standard arms, of which the expected orders speak.

    Raises:
        UserError: it is no such text, or the name is taken or no plain word.
    """
    arms: dict[str, Arm] = {}
    for spec in specs:
        name, separator, folder = spec.partition("=")
        if not separator or not folder or not name.isidentifier():
            raise UserError(f"--lora takes NAME=FOLDER, with a name of letters, digits and _, got {spec!r}")
        if name in taken or name in arms:
            raise UserError(f"--lora {name}: there is an arm of this name; give another")
        arms[name] = Arm(name, lora=os.path.expanduser(folder))  # which a shell does at the start of a word alone
    return arms


def make_images(arm: Arm, pipe: LbGenPipeline, images_per_class: int, num_inference_steps: int) -> Tensor:
    """The images of an arm.

    Returns:
        (C, n, 3, H, W) float in [0, 1], in the order of `CLASSES`.
    """
    if arm.scenes:
        scenes = _scenes(arm.scenes, images_per_class)
        images = torch.cat([render(scenes[rows]).images for rows in torch.arange(len(scenes)).split(256)])
        return images.view(len(CLASSES), images_per_class, 3, IMAGE_SIZE, IMAGE_SIZE)
    prompts = [name for name in CLASSES for _ in range(images_per_class)]
    if arm.captions:
        prompts = caption_scenes(_scenes("unbiased", images_per_class), mention=1.0, seed=NOISE_SEED, templates=["{}"])
    with _adapted(pipe, arm):
        return torch.stack(
            [
                _sample(
                    arm, pipe, name, prompts[i * images_per_class : (i + 1) * images_per_class], num_inference_steps
                )
                for i, name in enumerate(CLASSES)
            ]
        )


def make_specific_images(
    arm: Arm, pipe: LbGenPipeline, images_per_class: int, num_inference_steps: int
) -> dict[str, Tensor]:
    """Images of each meaning of the polysemous class names, prompted by its specific name; the noise is the class's.

    Returns:
        Specific name to (n, 3, H, W) float in [0, 1].
    """
    with _adapted(pipe, arm):
        return {
            specific: _sample(arm, pipe, name, [specific] * images_per_class, num_inference_steps)
            for name, meanings in POLYSEMOUS.items()
            for specific in meanings
        }


def _scenes(kind: str, images_per_class: int) -> Scenes:
    labels = torch.arange(len(CLASSES)).repeat_interleave(images_per_class)
    if kind != "retrieved":
        bias = REAL_BIAS if kind == "biased" else 0.0
        return sample_scenes(len(labels), bias=bias, seed=_SCENE_SEED, labels=labels)
    known = sample_scenes(**BASE_TRAINING_SCENES)
    rows = [(known.labels == label).nonzero()[:images_per_class, 0] for label in range(len(CLASSES))]
    return known[torch.cat(rows)]


@contextlib.contextmanager
def _adapted(pipe: LbGenPipeline, arm: Arm) -> Iterator[None]:
    if arm.lora is None:
        yield
        return
    pipe.load_lora_weights(arm.lora)
    try:
        yield
    finally:
        pipe.unload_lora_weights()


def _sample(arm: Arm, pipe: LbGenPipeline, label: str, prompts: list[str], num_inference_steps: int) -> Tensor:
    """An image (3, H, W) for each prompt, from the noise of the label and the prompt's place."""
    scale: Any = {} if arm.lora is None else {"cross_attention_kwargs": {"scale": arm.scale}}
    output: Any = pipe(
        [label] * len(prompts),
        prompt=prompts,
        seed=NOISE_SEED,
        num_inference_steps=num_inference_steps,
        guidance_scale=arm.guidance_scale,
        output_type="pt",
        **scale,
    )
    return output.images.float().cpu()
