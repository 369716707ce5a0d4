"""Which classes, noise and other classes the images of a run start from: functions of the image's number alone."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from lbgen_hf.pipeline_lbgen import image_seed
from lbgen_hf.rewards.losses import sample_other_classes


@dataclasses.dataclass(frozen=True)
class Batch:
    """What the images of one micro-batch start from.

    Attributes:
        class_ids: (B,) the classes to sample.
        real_ids: (B,) for each image another class, whose name the paper's D is shown as real.
        noise: (B, C, h, w) standard normal, float32.
        generators: one an image, for the noise that a scheduler adds on its way.
    """

    class_ids: Tensor
    real_ids: Tensor
    noise: Tensor
    generators: list[torch.Generator]


def stream(seed: int, purpose: str, number: int) -> torch.Generator:
    """The generator for one purpose of one number: of an image, a step, an epoch."""
    return torch.Generator().manual_seed(image_seed(seed, purpose, number))


def sample_batch(images: Sequence[int], num_classes: int, latent_shape: tuple[int, ...], seed: int) -> Batch:
    """The images of these numbers, counted over the whole run. Each epoch visits every class once, in its own order."""
    epochs = {i // num_classes for i in images}
    orders = {e: torch.randperm(num_classes, generator=stream(seed, "order", e)) for e in epochs}
    class_ids = torch.stack([orders[i // num_classes][i % num_classes] for i in images])
    generators = [stream(seed, "image", i) for i in images]
    noise = torch.stack([torch.randn(latent_shape, generator=generator) for generator in generators])
    real_ids = [sample_other_classes(c, num_classes, g) for c, g in zip(class_ids, generators, strict=True)]
    return Batch(class_ids, torch.stack(real_ids), noise, generators)
