"""Rows of any labelled image dataset, streamed and not decoded: a folder, a parquet file, what `datasets` opens."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HfHubHTTPError

from lbgen_hf.errors import UserError, first_line
from lbgen_hf.evaluation.images import read_encoded
from lbgen_hf.files import IMAGE_SUFFIXES, is_saved_dataset

_LABEL_NAMES = ("label", "labels", "class", "target")
_IMAGE_NAMES = ("image", "img", "jpg", "png")
_SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation")
_FAILURES = (OSError, ValueError, RuntimeError, pa.ArrowException, DatasetsError, HfHubHTTPError)


class Row(NamedTuple):
    """One image that is still encoded.

    Attributes:
        name: its path, or its row's number: how an unreadable one is named.
        content: its bytes, or where they are.
        label: its class's name.
    """

    name: str
    content: bytes | str | None
    label: str

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            OSError: it cannot be read.
        """
        return read_encoded(self.content)


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """A labelled image dataset, open for one pass.

    Attributes:
        name: how it is called in reports.
        num_rows: None where only reading tells.
        folder: where it lies on this machine, else None.
    """

    name: str
    num_rows: int | None
    folder: Path | None
    _dataset: Any
    _image_column: str
    _label_column: str

    @property
    def class_names(self) -> list[str] | None:
        """The classes that it declares, whether or not they have images; None where only reading tells."""
        return getattr(self._dataset.features[self._label_column], "names", None)

    def rows(self) -> Iterator[Row]:
        """Every row in order.

        Raises:
            UserError: the dataset is damaged or out of reach, or a row has no label.
        """
        names = self.class_names
        with explain(self.name):
            for number, row in enumerate(self._dataset):
                label, image = row[self._label_column], row[self._image_column]
                if label is None or (names and label < 0):
                    raise UserError(f"{self.name}: row {number} has no label; give a split with labels (--split)")
                cell: dict[str, Any] = {"bytes": image} if isinstance(image, bytes | None) else image
                path, content = cell.get("path"), cell["bytes"]
                yield Row(path or f"row {number}", content or path, names[label] if names else str(label))


@contextlib.contextmanager
def explain(name: str) -> Iterator[None]:
    """Turn what a dataset's reader raises into one line.

    Raises:
        UserError: always where something was raised.
    """
    try:
        yield
    except UserError:
        raise
    except _FAILURES as error:
        reason = first_line(error)
        raise UserError(f"cannot read {name}: {reason}") from error


def open_images(
    source: Any,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> LabelledImages:
    """Open a dataset with labels.

    Args:
        source: a folder with a subfolder of images a class; a folder or repo that `datasets.load_dataset` opens, or a
            folder of `save_to_disk`; a parquet file; or a `Dataset`, `IterableDataset` or a dict of them.
        split: default: the only one, or train.
        image_column: default: the only one with images.
        label_column: default: the only `ClassLabel`, or the only one called label, labels, class or target.

    Raises:
        UserError: nothing there to read, or no such split or column, or several.
    """
    is_path = isinstance(source, str | Path)
    name = str(source) if is_path else f"the {type(source).__name__}"
    with explain(name):
        dataset = _load(source) if is_path else source
    if isinstance(dataset, dict):
        dataset = _choose_split(dataset, split, name)
    if not isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
        raise UserError(f"cannot audit a {type(source).__name__}; give a path, a repo id or an object of `datasets`")
    if isinstance(dataset, datasets.IterableDataset) and not dataset.features:
        with explain(name):
            dataset = dataset._resolve_features()
    features: dict[str, Any] = dict(dataset.features or {})
    image = _choose("image", image_column, _image_columns(features), features, name)
    label = _choose("label", label_column, _label_columns(features), features, name)
    if isinstance(features[image], datasets.Image):
        dataset = dataset.cast_column(image, datasets.Image(decode=False))
    folder = Path(source) if is_path and Path(source).is_dir() else None
    num_rows = len(dataset) if isinstance(dataset, datasets.Dataset) else _declared_rows(dataset)
    return LabelledImages(name, num_rows, folder, dataset.select_columns([image, label]), image, label)


def _load(source: str | Path) -> Any:
    path = Path(source)
    if not str(source):
        raise UserError("the dataset's name is empty; give a folder, a .parquet file or a repo id")
    if path.is_file():
        if path.suffix != ".parquet":
            raise UserError(f"cannot audit the file {path}; give a folder, a .parquet file or a repo id")
        return datasets.load_dataset("parquet", data_files=str(path), streaming=True)
    if is_saved_dataset(path):
        return datasets.load_from_disk(str(path))
    if class_folders := _class_folders(path):
        return class_folders
    if path.is_dir() or (str(source).count("/") <= 1 and not str(source).startswith((".", "/", "~"))):
        return datasets.load_dataset(str(source), streaming=True)
    raise UserError(f"there is no folder or file {source}")


def _class_folders(path: Path) -> dict[str, datasets.Dataset] | None:
    """The one split of a folder that holds a folder of images for each class, and nothing else; None if it is another.

    `datasets` reads such a folder too, but lists all files 66 times in search of splits: minutes for 100,000 images.
    """
    if not path.is_dir():
        return None
    entries = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
    if any(not entry.is_dir() or entry.name.lower() in _SPLIT_NAMES for entry in entries):
        return None
    paths: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(entries):
        with os.scandir(folder) as files:
            found = sorted(file.path for file in files if file.is_file() and not file.name.startswith("."))
        if not found or any(os.path.splitext(file)[1].lower() not in IMAGE_SUFFIXES for file in found):
            return None
        paths += found
        labels += [label] * len(found)
    if not paths:
        return None
    label_feature = datasets.ClassLabel(names=[folder.name for folder in entries])
    features = datasets.Features({"image": datasets.Image(decode=False), "label": label_feature})
    return {"train": datasets.Dataset.from_dict({"image": paths, "label": labels}, features=features)}


def _declared_rows(dataset: datasets.IterableDataset) -> int | None:
    splits = dataset.info.splits or {}
    return splits[dataset.split].num_examples or None if dataset.split and dataset.split in splits else None


def _choose_split(splits: dict[str, Any], wanted: str | None, name: str) -> Any:
    if wanted is None:
        wanted = next(iter(splits)) if len(splits) == 1 else "train"
    if wanted not in splits:
        raise UserError(f"{name} has no split {wanted!r}; choose one of {', '.join(splits)} (--split)")
    return splits[wanted]


def _image_columns(features: dict[str, Any]) -> list[str]:
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    return found or [name for name in features if name in _IMAGE_NAMES]


def _label_columns(features: dict[str, Any]) -> list[str]:
    found = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    return found or [name for name in features if name in _LABEL_NAMES and _is_plain(features[name])]


def _holds_images(feature: Any) -> bool:
    """Whether a column's values are images: encoded, or with a path."""
    if isinstance(feature, datasets.Value):
        return "binary" in feature.dtype
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)


def _is_plain(feature: Any) -> bool:
    """Whether a column's values name classes: whole numbers or text."""
    if not isinstance(feature, datasets.Value | datasets.ClassLabel):
        return False
    return feature.dtype.startswith(("int", "uint", "bool")) or "string" in feature.dtype


def _choose(what: str, wanted: str | None, found: list[str], features: dict[str, Any], name: str) -> str:
    columns = ", ".join(features)
    if wanted is None and len(found) != 1:
        number = f"several {what} columns ({', '.join(found)})" if found else f"no {what} column among {columns}"
        raise UserError(f"{name} has {number}; name it with --{what}-column")
    chosen = wanted if wanted is not None else found[0]
    if chosen not in features:
        raise UserError(f"{name} has no column {chosen!r}; it has {columns}")
    if what == "label" and not _is_plain(features[chosen]):
        raise UserError(f"{name}: column {chosen!r} is no label: its values must be whole numbers or text")
    if what == "image" and not _holds_images(features[chosen]):
        raise UserError(f"{name}: column {chosen!r} holds no images: its values must be images or their bytes")
    return chosen
