"""Labelled images from files, from `datasets`, or rendered, behind one interface.

An image that cannot be read is an error that names it. It is never replaced by another.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from lbgen_hf.errors import UserError, first_line
from lbgen_hf.files import BROKEN_IMAGE, IMAGE_SUFFIXES


class LabelledImages:
    """A split of a benchmark.

    Attributes:
        labels: (n,) class ids.
        class_names: the name of each class.
        fingerprint: changes with the images, their order or their labels; of files, with their names and sizes, so that
            training resumes on a copy of them.
        cache_key: as `fingerprint`, but of files with their times too: those of an uncompressed format have one size.
    """

    def __init__(self, labels: ArrayLike, class_names: Sequence[str], content: str) -> None:
        self.labels: NDArray[np.int64] = np.asarray(labels, dtype=np.int64)
        self.class_names = tuple(class_names)
        self.fingerprint = hashlib.sha256(content.encode(errors="surrogateescape") + self.labels.tobytes()).hexdigest()
        self.cache_key = self.fingerprint
        if not len(self.labels):
            raise UserError(f"there are no images in {self.describe()}")

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Image `index` in RGB.

        Raises:
            UserError: it cannot be read; the message names it.
        """
        try:
            return self._open(index).convert("RGB")
        except BROKEN_IMAGE as error:
            raise UserError(f"cannot read the image {self.name(index)}: {first_line(error)}") from error

    def _open(self, index: int) -> Image.Image:
        raise NotImplementedError

    def name(self, index: int) -> str:
        """How a message names image `index`."""
        raise NotImplementedError

    def describe(self) -> str:
        """How a message names all of them."""
        return "the benchmark"

    def subset(self, indices: ArrayLike) -> "LabelledImages":
        """Some of the images, in the order of `indices`."""
        raise NotImplementedError


class ImageFiles(LabelledImages):
    """Images in files.

    Args:
        paths: of the files.
        labels: (n,) class ids.
        class_names: of all classes.
        root: the benchmark's folder, which messages and the fingerprint leave out of the paths.
    """

    def __init__(self, paths: Sequence[str | Path], labels: ArrayLike, class_names: Sequence[str], root: Path) -> None:
        self.paths = [Path(path) for path in paths]
        self.root = root
        for path in self.paths:
            if not path.is_file():
                raise UserError(f"the image {path} is missing")
        stats = [path.stat() for path in self.paths]
        listing = zip(self.paths, stats, strict=True)
        super().__init__(labels, class_names, "\n".join(f"{p.relative_to(root)} {s.st_size}" for p, s in listing))
        times = " ".join(str(stat.st_mtime_ns) for stat in stats)
        self.cache_key = hashlib.sha256(f"{self.fingerprint} {times}".encode()).hexdigest()

    def _open(self, index: int) -> Image.Image:
        return Image.open(self.paths[index])

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def describe(self) -> str:
        return str(self.root)

    def subset(self, indices: ArrayLike) -> "ImageFiles":
        indices = np.asarray(indices)
        return ImageFiles([self.paths[i] for i in indices], self.labels[indices], self.class_names, self.root)


class DatasetImages(LabelledImages):
    """Images of a `datasets.Dataset` with an image column and a `ClassLabel` column."""

    def __init__(self, dataset, image_column: str, label_column: str, source: str) -> None:
        import datasets

        self.dataset = dataset
        self.image_column, self.label_column, self.source = image_column, label_column, source
        self.rows = dataset.select_columns([image_column]).cast_column(image_column, datasets.Image())
        labels = dataset[label_column][:]
        missing = [index for index, label in enumerate(labels) if label is None or label < 0]
        if missing:
            raise UserError(f"row {missing[0]} of {source} has no label; {len(missing)} of {len(labels)} have none")
        class_names = dataset.features[label_column].names
        wrong = next((index for index, label in enumerate(labels) if label >= len(class_names)), None)
        if wrong is not None:
            last = len(class_names) - 1
            raise UserError(f"row {wrong} of {source} has the label {labels[wrong]}, which is not one of 0 to {last}")
        super().__init__(labels, class_names, f"{source} {dataset._fingerprint}")

    def _open(self, index: int) -> Image.Image:
        image = self.rows[int(index)][self.image_column]
        if image is None:
            raise OSError("the row has no image")
        return image

    def name(self, index: int) -> str:
        return f"{index} of {self.source}"

    def describe(self) -> str:
        return self.source

    def subset(self, indices: ArrayLike) -> "DatasetImages":
        chosen = self.dataset.select([int(index) for index in np.asarray(indices)])
        return DatasetImages(chosen, self.image_column, self.label_column, self.source)


class RenderedImages(LabelledImages):
    """Images in memory.

    Args:
        pixels: (n, 3, H, W) float in [0, 1].
        labels: (n,) class ids.
        class_names: of all classes.
        source: what they are, for messages and the fingerprint.
    """

    def __init__(self, pixels: Tensor, labels: ArrayLike, class_names: Sequence[str], source: str) -> None:
        self.pixels = pixels if pixels.dtype == torch.uint8 else (pixels * 255).round().to(torch.uint8)
        self.source = source
        digest = hashlib.sha256(self.pixels.numpy().tobytes()).hexdigest()
        super().__init__(labels, class_names, f"{source} {digest}")

    def _open(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index].permute(1, 2, 0).numpy())

    def name(self, index: int) -> str:
        return f"{index} of {self.source}"

    def describe(self) -> str:
        return self.source

    def subset(self, indices: ArrayLike) -> "RenderedImages":
        indices = np.asarray(indices)
        return RenderedImages(
            self.pixels[torch.from_numpy(indices)], self.labels[indices], self.class_names, self.source
        )


def image_folder(root: Path) -> ImageFiles:
    """A folder with a folder of images for each class.

    Raises:
        UserError: there are no such folders or images.
    """
    classes = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(path for path in (root / name).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise UserError(f"the class folder {root / name} has no images")
        paths += found
        labels += [label] * len(found)
    if not classes:
        raise UserError(f"expected a folder of images for each class in {root}, found no folders")
    return ImageFiles(paths, labels, classes, root)


def read_encoded(content: bytes | str | None) -> bytes:
    """An image that `datasets` has not decoded.

    Args:
        content: its bytes, or where they are: a path, or a URL that fsspec opens.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(content, bytes):
        return content
    if content is None:
        raise OSError("the row has no image")
    opened: Any = fsspec.open(content, "rb")
    with opened as file:
        return file.read()
