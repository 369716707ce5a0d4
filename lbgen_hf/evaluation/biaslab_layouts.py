"""biaslab scenes as COCO and ADE20K folders, for detection and segmentation: a scene knows its box and its mask."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lbgen_hf.biaslab.scenes import CLASSES, IMAGE_SIZE, render, sample_scenes
from lbgen_hf.evaluation.biaslab import SEED, world
from lbgen_hf.files import write_atomically

_SPLIT_SEEDS = {"train": SEED + 10, "val": SEED + 1_000_010}


def write_coco(
    folder: Path,
    split: str,
    num_images: int,
    *,
    bias: float = 0.0,
    classes: Sequence[str] = tuple(CLASSES),
) -> Path:
    """Write `{split}2017/` and `annotations/instances_{split}2017.json`, one object an image.

    Args:
        folder: of the dataset.
        split: "train" or "val".
        num_images: as many of each class.
        bias: as in `sample_scenes`.
        classes: biaslab's, training or novel ones; category ids begin at 1.

    Returns:
        The path of the annotations. Segmentations are uncompressed run lengths.
    """
    images = folder / f"{split}2017"
    images.mkdir(parents=True, exist_ok=True)
    records, annotations = [], []
    for i, (image, mask, box, label) in enumerate(_scenes(split, num_images, bias, classes)):
        name = f"{i:012d}.png"
        image.save(images / name)
        records.append({"id": i, "file_name": name, "width": IMAGE_SIZE, "height": IMAGE_SIZE})
        x0, y0, x1, y1 = box
        annotations.append(
            {
                "id": i + 1,
                "image_id": i,
                "category_id": label + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": [IMAGE_SIZE, IMAGE_SIZE], "counts": run_lengths(mask)},
            }
        )
    content = {
        "info": {"description": "biaslab", "world": world(), "bias": bias},
        "images": records,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(classes)],
    }
    path = folder / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(content))
    return path


def write_ade20k(
    folder: Path,
    split: str,
    num_images: int,
    *,
    bias: float = 0.0,
    classes: Sequence[str] = tuple(CLASSES),
) -> None:
    """Write ADE20K's `images/` and `annotations/`, each with `training/` or `validation/`, and `objectInfo150.txt`.

    An annotation is a PNG of class numbers: 1 to the number of classes for shapes, 0 for what is not labelled; here
    that is nothing, since the background is a class of its own, the last.
    """
    part = {"train": "training", "val": "validation"}[split]
    for kind in ("images", "annotations"):
        (folder / kind / part).mkdir(parents=True, exist_ok=True)
    for i, (image, mask, _, label) in enumerate(_scenes(split, num_images, bias, classes)):
        stem = f"ADE_{split}_{i:08d}"
        image.save(folder / "images" / part / f"{stem}.png")
        numbers = np.where(mask, label + 1, len(classes) + 1).astype(np.uint8)
        Image.fromarray(numbers).save(folder / "annotations" / part / f"{stem}.png")
    lines = ["Idx\tRatio\tTrain\tVal\tName"]
    lines += [f"{i + 1}\t0\t0\t0\t{name}" for i, name in enumerate([*classes, "background"])]
    write_atomically(folder / "objectInfo150.txt", "\n".join(lines) + "\n")
    write_atomically(folder / "world.json", json.dumps({"world": world(), "bias": bias}) + "\n")


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths of a mask (H, W): by columns, of zeros first."""
    pixels = np.concatenate([[0], mask.astype(np.uint8).flatten(order="F"), [2]])
    changes = np.flatnonzero(np.diff(pixels))
    return np.diff(np.concatenate([[0], changes])).tolist()


def _scenes(split: str, num_images: int, bias: float, classes: Sequence[str], batch_size: int = 256):
    """Image, mask (H, W) bool, box (x0, y0, x1, y1) and label of each scene."""
    labels = torch.arange(num_images) % len(classes)
    scenes = sample_scenes(num_images, bias=bias, seed=_SPLIT_SEEDS[split], labels=labels, classes=list(classes))
    for start in range(0, num_images, batch_size):
        part = scenes[start : start + batch_size]
        rendered = render(part)
        pixels = (rendered.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        masks = (rendered.masks >= 0.5).numpy()
        for image, mask, box, label in zip(pixels, masks, rendered.boxes.tolist(), part.labels.tolist(), strict=True):
            yield Image.fromarray(image), mask, box, label
