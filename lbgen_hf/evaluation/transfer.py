"""The datasets that features are transferred to, with the splits and sizes of the paper's table 6.

Eight come through torchvision's classes, from the user's folder; any other is a `datasets` repo or folder with a
`ClassLabel`, or a folder of class folders.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lbgen_hf.errors import UserError, first_line
from lbgen_hf.evaluation.images import DatasetImages, ImageFiles, LabelledImages, image_folder
from lbgen_hf.evaluation.splits import stratified_split
from lbgen_hf.files import is_saved_dataset

FEW_SHOT_FRACTIONS = (0.1, 0.2, 0.5, 1.0)


@dataclasses.dataclass(frozen=True)
class TransferDataset:
    """Training, validation and test images of one dataset. C is chosen on `val`, then refitted on both."""

    name: str
    train: LabelledImages
    val: LabelledImages
    test: LabelledImages

    @property
    def num_classes(self) -> int:
        return len(self.train.class_names)


@dataclasses.dataclass(frozen=True)
class Expected:
    """What table 6 says of a dataset."""

    num_classes: int
    train: int
    val: int
    test: int


TABLE_6 = {
    "aircraft": Expected(100, 3334, 3333, 3333),
    "cars196": Expected(196, 5700, 2444, 8041),
    "dtd": Expected(47, 1880, 1880, 1880),
    "eurosat": Expected(10, 13500, 5400, 8100),
    "flowers": Expected(102, 1020, 1020, 6149),
    "pets": Expected(37, 2570, 1110, 3669),
    "food101": Expected(101, 68175, 7575, 25250),
    "sun397": Expected(397, 15880, 3970, 19850),
}


def load_transfer_dataset(name: str, root: Path) -> TransferDataset:
    """Load one of the eight.

    Args:
        name: of `TABLE_6`.
        root: the folder that torchvision's class takes as `root`.

    Raises:
        UserError: the dataset is not there, or its sizes are not table 6's.
    """
    expected = TABLE_6[name]
    try:
        train, val, test = _LOADERS[name](root, expected)
    except (RuntimeError, FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"no {name} in {root}: {first_line(error)} Expected the layout of torchvision's class of it."
        ) from error
    sizes = (len(train.class_names), len(train), len(val), len(test))
    if sizes != dataclasses.astuple(expected):
        raise UserError(
            f"{name} in {root} has {sizes[0]} classes and {sizes[1]} training, {sizes[2]} validation and {sizes[3]} "
            f"test images; expected {expected.num_classes}, {expected.train}, {expected.val} and {expected.test}"
        )
    return TransferDataset(name, train, val, test)


Splits = tuple[ImageFiles, ...]  # training, validation, test
Loader = Callable[[Path, Expected], Splits]


def _provided(make: Callable, root: Path) -> Splits:
    """All three splits as the authors gave them."""
    return tuple(_files(make(str(root), split=split), root) for split in ("train", "val", "test"))


def _with_validation(train: ImageFiles, test: ImageFiles, expected: Expected) -> Splits:
    """Validation images taken from the training images, by class."""
    rest, val = stratified_split(train.labels, min(expected.val, len(train) - 1))
    return train.subset(rest), train.subset(val), test


def _aircraft(root: Path, expected: Expected) -> Splits:
    from torchvision.datasets import FGVCAircraft

    return _provided(FGVCAircraft, root)


def _cars196(root: Path, expected: Expected) -> Splits:
    from torchvision.datasets import StanfordCars

    train, test = (_files(StanfordCars(str(root), split=split), root) for split in ("train", "test"))
    return _with_validation(train, test, expected)


def _dtd(root: Path, expected: Expected) -> Splits:
    from torchvision.datasets import DTD

    return _provided(DTD, root)


def _eurosat(root: Path, expected: Expected) -> Splits:
    """No split is provided: 50, 20 and 30 % of each class."""
    from torchvision.datasets import EuroSAT

    images = _files(EuroSAT(str(root)), root)
    rest, test = stratified_split(images.labels, min(expected.test, len(images) - 1))
    return _with_validation(images.subset(rest), images.subset(test), expected)


def _flowers(root: Path, expected: Expected) -> Splits:
    from torchvision.datasets import Flowers102

    return _provided(lambda *args, **options: _NamedClasses(Flowers102(*args, **options), expected.num_classes), root)


def _pets(root: Path, expected: Expected) -> Splits:
    from torchvision.datasets import OxfordIIITPet

    train, test = (_files(OxfordIIITPet(str(root), split=split), root) for split in ("trainval", "test"))
    return _with_validation(train, test, expected)


def _food101(root: Path, expected: Expected) -> Splits:
    from torchvision.datasets import Food101

    train, test = (_files(Food101(str(root), split=split), root) for split in ("train", "test"))
    return _with_validation(train, test, expected)


def _sun397(root: Path, expected: Expected) -> Splits:
    """The authors' first partition: 50 training and 50 test images a class."""
    from torchvision.datasets import SUN397

    images = _files(SUN397(str(root)), root)
    folder = root / "SUN397"
    of_path = {f"/{path.relative_to(folder).as_posix()}": i for i, path in enumerate(images.paths)}
    parts = []
    for name in ("Training_01.txt", "Testing_01.txt"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: put the files of the dataset's Partitions.zip there")
        lines = (folder / name).read_text(encoding="utf-8").split()
        unknown = [line for line in lines if line not in of_path]
        if unknown:
            raise UserError(f"{folder / name} names {unknown[0]}, which is not there; {len(unknown)} are missing")
        parts.append(images.subset([of_path[line] for line in lines]))
    train, test = parts
    return _with_validation(train, test, expected)


_LOADERS: dict[str, Loader] = {
    "aircraft": _aircraft,
    "cars196": _cars196,
    "dtd": _dtd,
    "eurosat": _eurosat,
    "flowers": _flowers,
    "pets": _pets,
    "food101": _food101,
    "sun397": _sun397,
}


class _NamedClasses:
    """A torchvision dataset that knows no class names, with numbers for names."""

    def __init__(self, dataset, num_classes: int) -> None:
        self._image_files, self._labels = dataset._image_files, dataset._labels
        self.classes = [str(i) for i in range(num_classes)]


def _files(dataset, root: Path) -> ImageFiles:
    """The files and labels of a torchvision dataset, without opening an image; sorted, where it lists a folder."""
    if hasattr(dataset, "_samples"):
        samples = [(path, label) for path, label in dataset._samples]
    elif hasattr(dataset, "samples"):
        samples = sorted(dataset.samples)
    else:
        files = getattr(dataset, "_image_files", None) or dataset._images
        samples = sorted(zip(map(str, files), dataset._labels, strict=True))
    paths, labels = zip(*samples, strict=True) if samples else ((), ())
    return ImageFiles(paths, np.array(labels, dtype=int), dataset.classes, root)


def load_any_dataset(source: str) -> TransferDataset:
    """Load a labelled dataset whose splits are its own, or made: 20 % of what it has for each missing one.

    Args:
        source: a folder of class folders, with or without `train`, `val` and `test` above them; or a repo or folder
            that `datasets.load_dataset` opens, with one image column and one `ClassLabel` column.

    Raises:
        UserError: neither opens it, or it has no such columns or images.
    """
    splits = {name: open_split() for name, open_split in _splits(source).items()}
    train = _train_of(splits, source)
    for name, images in splits.items():
        if images.class_names != train.class_names:
            missing = ", ".join(sorted(set(train.class_names) ^ set(images.class_names))[:1])
            raise UserError(f"the {name} and train images of {source} differ in their classes: {missing}")
    test = splits.get("test")
    if test is None:
        train, test = _cut(train)
    val = splits.get("val")
    if val is None:
        train, val = _cut(train)
    return TransferDataset(Path(source).name, train, val, test)


def _cut(images: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    if len(images) < 2:
        raise UserError(f"there are too few images in {images.describe()} for training, validation and test")
    rest, selected = stratified_split(images.labels, max(1, round(0.2 * len(images))))
    return images.subset(rest), images.subset(selected)


def load_training_images(source: str) -> LabelledImages:
    """The training split of a source, or all of its images if it has no splits.

    Args:
        source: as `load_any_dataset` takes it.

    Raises:
        UserError: as there.
    """
    return _train_of(_splits(source), source)()


def load_validation_images(source: str) -> LabelledImages:
    """The validation split of a source, or all of its images if it has but one.

    Args:
        source: as `load_any_dataset` takes it.

    Raises:
        UserError: as there, or it has several splits and none for validation.
    """
    splits = _splits(source)
    if "val" not in splits and len(splits) > 1:
        raise UserError(f"{source} has no split for validation; it has {', '.join(splits)}")
    return splits.get("val", next(iter(splits.values())))()


_OpenSplit = Callable[[], LabelledImages]
_Split = TypeVar("_Split")
_VALIDATION_NAMES = ("val", "valid", "validation")
_SPLITS = {"train": "train", "test": "test", **dict.fromkeys(_VALIDATION_NAMES, "val")}


def _train_of(splits: dict[str, _Split], source: str) -> _Split:
    if "train" not in splits:
        raise UserError(f"{source} has no split 'train'; it has {', '.join(splits)}")
    return splits["train"]


def _splits(source: str) -> dict[str, _OpenSplit]:
    """What opens the train, val and test images of a source, of those that it has."""
    if not source or Path(source).is_file():
        raise UserError(f"{source!r} holds no labelled images: give a folder, or a Hub id that `datasets` opens")
    return _folder_splits(Path(source)) if _is_image_folder(Path(source)) else _hub_splits(source)


def _is_image_folder(folder: Path) -> bool:
    """Whether images are in a folder for each class, and not in Parquet or Arrow files."""
    return folder.is_dir() and not any(folder.rglob("*.parquet")) and not is_saved_dataset(folder)


def _folder_splits(folder: Path) -> dict[str, _OpenSplit]:
    folders = {split: folder / name for name, split in _SPLITS.items() if (folder / name).is_dir()}
    if "train" not in folders:  # then these are classes of such names
        folders = {"train": folder}
    return {split: functools.partial(image_folder, of_split) for split, of_split in folders.items()}


def _hub_splits(source: str) -> dict[str, _OpenSplit]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        found = datasets.load_from_disk(source) if is_saved_dataset(Path(source)) else datasets.load_dataset(source)
    except (FileNotFoundError, ValueError, OSError, DatasetsError) as error:
        raise UserError(f"`datasets` cannot open {source!r}: {first_line(error)}") from error
    splits = (
        {"train": found} if isinstance(found, datasets.Dataset) else {str(name): rows for name, rows in found.items()}
    )
    if not splits.keys() & _SPLITS.keys():
        raise UserError(f"{source} has no split named {', '.join(_SPLITS)}; it has {', '.join(splits)}")
    image, label = columns_of(next(iter(splits.values())).features, source)
    return {
        _SPLITS[name]: functools.partial(DatasetImages, rows, image, label, f"{source} ({name})")
        for name, rows in splits.items()
        if name in _SPLITS and not (name == "test" and _has_no_labels(rows, label))
    }


def _has_no_labels(rows: Any, label_column: str) -> bool:
    """Whether they are kept secret, as those of ImageNet's test images are."""
    return all(label is None or label < 0 for label in rows[label_column])


def columns_of(features, source: str) -> tuple[str, str]:
    """The image column and the `ClassLabel` column."""
    import datasets

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if "label" in labels:
        labels = ["label"]
    if len(images) != 1 or len(labels) != 1:
        raise UserError(
            f"{source} must have one image column and one ClassLabel column, or one called 'label'; its columns are "
            f"{', '.join(features)}"
        )
    return images[0], labels[0]
