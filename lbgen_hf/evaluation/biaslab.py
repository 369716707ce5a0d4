"""Twins of the public benchmarks in biaslab, the small world whose bias is known: the same measures in minutes.

| twin | stands for |
|---|---|
| `validation` | the training classes' real validation set, without any bias |
| `cue_conflict` | Cue Conflict: a shape with the texture of another class |
| `contexts` | FOCUS: k of texture, background and place are not the class's own |
| `backgrounds` | ImageNet-9: cut-outs on backgrounds of their own class and of others |
| `novel_classes` | the transfer datasets: shapes that no training class has |

All are functions of the number of images and a seed. Results of different worlds do not compare: `world` says which.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from lbgen_hf.biaslab.scenes import (
    BACKGROUND_NAMES,
    CLASSES,
    NOVEL_CLASSES,
    PLACE_NAMES,
    TEXTURE_NAMES,
    WORLD_VERSION,
    Scenes,
    own_attributes,
    render,
    render_backgrounds,
    sample_scenes,
    world_hash,
)
from lbgen_hf.evaluation.images import RenderedImages
from lbgen_hf.evaluation.transfer import TransferDataset

SEED = 20_000  # away from the seeds of anything that is trained
_BATCH = 256


def world() -> dict[str, str | int]:
    """The version and hash of biaslab's world, which stand beside every result."""
    return {"version": WORLD_VERSION, "hash": world_hash()}


def validation(num_images: int = 2000, seed: int = SEED) -> RenderedImages:
    """Scenes of the training classes, as many of each, their attributes independent of the class."""
    scenes = sample_scenes(num_images, bias=0.0, seed=seed, labels=_balanced(num_images, len(CLASSES)))
    return _rendered(scenes, "biaslab validation")


@dataclasses.dataclass(frozen=True)
class CueConflict:
    """Shapes with another class's texture, plain background, at the centre.

    Classes share their textures, so a decision is for the texture where the predicted class's own texture is the
    image's. Pairs of a shape and its own class's texture are excluded.

    Attributes:
        images: labelled by shape.
        textures: (n,) index of each image's texture.
    """

    images: RenderedImages
    textures: Tensor

    def decisions(self, predictions: Tensor) -> tuple[list[int], list[int], list[int]]:
        """Predictions, shapes' and textures' classes, for `texture_inclination`; a texture's first class stands for
        all that share it."""
        first = {texture: class_id for class_id, texture in reversed(list(enumerate(_own_textures())))}
        shapes = self.images.labels.tolist()
        textures = [first[texture] for texture in self.textures.tolist()]
        own = _own_textures()
        decided = [
            # below 0: a class that is not biaslab's
            class_id if class_id < 0 or class_id == shape or own[class_id] != own[texture] else texture
            for class_id, shape, texture in zip(predictions.tolist(), shapes, textures, strict=True)
        ]
        return decided, shapes, textures


def cue_conflict(num_images: int = 1200, seed: int = SEED + 1) -> CueConflict:
    """Every shape with every texture but its own, as many of each pair (the number is rounded up to make it so)."""
    own = _own_textures()
    pairs = torch.tensor(
        [(class_id, texture) for class_id in range(len(CLASSES)) for texture in sorted(set(own) - {own[class_id]})]
    )
    pairs = pairs.repeat(-(-num_images // len(pairs)), 1)
    scenes = sample_scenes(len(pairs), seed=seed, labels=pairs[:, 0])
    plain = torch.zeros_like(scenes.labels)
    scenes = scenes.replace(textures=pairs[:, 1], backgrounds=plain, places=plain)
    return CueConflict(_rendered(scenes, "biaslab cue conflict"), pairs[:, 1])


def contexts(images_per_partition: int = 480, seed: int = SEED + 2) -> tuple[RenderedImages, list[int]]:
    """P_0 to P_3: scenes of which k of texture, background and place are marked values that are not the class's own.

    Returns:
        The images, and how many attributes of each are uncommon.
    """
    n = 4 * images_per_partition
    labels = _balanced(images_per_partition, len(CLASSES)).repeat(4)
    num_uncommon = torch.arange(4).repeat_interleave(images_per_partition)
    scenes = sample_scenes(n, bias=1.0, seed=seed, labels=labels)
    rng = torch.Generator().manual_seed(seed)
    uncommon = torch.rand(n, 3, generator=rng).argsort(1).argsort(1) < num_uncommon[:, None]
    changed = {}
    names = {"textures": TEXTURE_NAMES, "backgrounds": BACKGROUND_NAMES, "places": PLACE_NAMES}
    for column, (attribute, values) in enumerate(names.items()):
        own = getattr(scenes, attribute)
        changed[attribute] = torch.where(uncommon[:, column], _another(own, len(values), rng), own)
    return _rendered(scenes.replace(**changed), "biaslab contexts"), num_uncommon.tolist()


@dataclasses.dataclass(frozen=True)
class Backgrounds:
    """Cut-outs on other backgrounds.

    Attributes:
        images: original, mixed_same, mixed_rand and recomposed, one after the other, of the same shapes.
        partitions: (n,) their names. "recomposed" is the control: the cut-out on the background that it was cut from.
            Where its accuracy is the originals', the border of a cut-out is no cue.
    """

    images: RenderedImages
    partitions: list[str]


def backgrounds(images_per_partition: int = 480, seed: int = SEED + 3) -> Backgrounds:
    """Scenes with all attributes their class's own, cut out and put on the background of another scene."""
    labels = _balanced(images_per_partition, len(CLASSES))
    scenes, others = (
        sample_scenes(images_per_partition, bias=1.0, seed=s, labels=labels) for s in (seed, seed + 1_000_000)
    )
    rng = torch.Generator().manual_seed(seed)
    strangers = others.replace(backgrounds=_another(others.backgrounds, len(BACKGROUND_NAMES), rng))
    original, masks = _render_all(scenes)
    parts = {
        "original": original,
        "mixed_same": _paste(original, masks, _backgrounds(others)),
        "mixed_rand": _paste(original, masks, _backgrounds(strangers)),
        "recomposed": _paste(original, masks, _backgrounds(scenes)),
    }
    images = RenderedImages(
        torch.cat(list(parts.values())), labels.repeat(len(parts)).numpy(), CLASSES, "biaslab backgrounds"
    )
    return Backgrounds(images, [name for name in parts for _ in range(images_per_partition)])


def novel_classes(
    train_per_class: int = 50, val_per_class: int = 25, test_per_class: int = 100, seed: int = SEED + 4
) -> TransferDataset:
    """Scenes without bias of shapes that no training class has."""
    splits = {}
    for offset, (split, per_class) in enumerate(
        {"train": train_per_class, "val": val_per_class, "test": test_per_class}.items()
    ):
        n = per_class * len(NOVEL_CLASSES)
        labels = _balanced(n, len(NOVEL_CLASSES))
        scenes = sample_scenes(n, seed=seed + 1_000_000 * offset, labels=labels, classes=NOVEL_CLASSES)
        splits[split] = _rendered(scenes, f"biaslab novel classes ({split})", NOVEL_CLASSES)
    return TransferDataset("biaslab-novel", **splits)


def _paste(images: Tensor, masks: Tensor, onto: Tensor) -> Tensor:
    return torch.lerp(onto, images, masks[:, None])


def _balanced(num_images: int, num_classes: int) -> Tensor:
    return torch.arange(num_images) % num_classes


def _own_textures() -> list[int]:
    return [own_attributes(class_id)[0] for class_id in range(len(CLASSES))]


def _another(own: Tensor, num_values: int, rng: torch.Generator) -> Tensor:
    """A marked value (1 to num_values - 1) that is not the own one, uniformly."""
    step = 1 + torch.randint(num_values - 2, own.shape, generator=rng)
    return 1 + (own - 1 + step) % (num_values - 1)


def _render_all(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) and masks (B, H, W), rendered in batches."""
    parts = [render(scenes[start : start + _BATCH]) for start in range(0, len(scenes), _BATCH)]
    return torch.cat([part.images for part in parts]), torch.cat([part.masks for part in parts])


def _backgrounds(scenes: Scenes) -> Tensor:
    return torch.cat([render_backgrounds(scenes[i : i + _BATCH]) for i in range(0, len(scenes), _BATCH)])


def _rendered(scenes: Scenes, source: str, classes: Sequence[str] = CLASSES) -> RenderedImages:
    return RenderedImages(_render_all(scenes)[0], scenes.labels.numpy(), classes, source)
