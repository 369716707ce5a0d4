"""biaslab as a dataset of `datasets`, with one bias planted at a time."""

import io

import datasets
import numpy as np
import torch
from PIL import Image

from lbgen_hf.biaslab.scenes import CLASSES, Scenes, render, sample_scenes
from lbgen_hf.evaluation.audit.collecting import Sample, collect
from lbgen_hf.evaluation.audit.reading import open_images


def planted_scenes(num: int, axis: str | None = None, bias: float = 0.0, seed: int = 0) -> Scenes:
    """Scenes whose backgrounds, textures or places alone are tied to the class."""
    labels = torch.arange(num) % len(CLASSES)
    scenes = sample_scenes(num, labels=labels, seed=seed)
    if axis is None:
        return scenes
    return scenes.replace(**{axis: getattr(sample_scenes(num, labels=labels, bias=bias, seed=seed), axis)})


def encode(pixels: np.ndarray, file_format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format, **options)
    return file.getvalue()


def render_uint8(scenes: Scenes) -> np.ndarray:
    """(n, 64, 64, 3)."""
    images = [render(scenes[start : start + 256]).images for start in range(0, len(scenes), 256)]
    return (torch.cat(images) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def as_dataset(contents: list[bytes], labels: list[int], names: list[str]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": [{"bytes": content, "path": None} for content in contents], "label": labels}
    return datasets.Dataset.from_dict(rows, features=features)


def biaslab_dataset(num: int, axis: str | None = None, bias: float = 0.0, seed: int = 0) -> datasets.Dataset:
    """`num` images of biaslab, balanced over its classes."""
    scenes = planted_scenes(num, axis, bias, seed)
    contents = [encode(pixels, compress_level=1) for pixels in render_uint8(scenes)]
    return as_dataset(contents, scenes.labels.tolist(), CLASSES)


def measure(dataset: datasets.Dataset) -> Sample:
    return collect(open_images(dataset))
