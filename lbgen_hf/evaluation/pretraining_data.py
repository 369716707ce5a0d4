"""The images that a backbone is pre-trained on: a `datasets` repo or folder, a stream, class folders, or tars."""

import collections
import dataclasses
import io
import itertools
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lbgen_hf.class_names import load_class_names
from lbgen_hf.errors import UserError, first_line
from lbgen_hf.evaluation.images import LabelledImages, read_encoded
from lbgen_hf.evaluation.pretraining_config import PretrainingConfig
from lbgen_hf.evaluation.seeded_batches import Batches, WithErrors, derived_seed, seed_everything, seeded_loader
from lbgen_hf.evaluation.splits import stratified_split
from lbgen_hf.evaluation.transfer import columns_of, load_training_images
from lbgen_hf.files import BROKEN_IMAGE, listing_hash

_SHUFFLE_BUFFER = 10_000


@dataclasses.dataclass(frozen=True)
class Stream:
    """Images that can only be read in order.

    Attributes:
        rows: a `datasets.IterableDataset`, its images not decoded.
        image_column, label_column: of the rows.
        num_images: an epoch.
        class_names: of all classes.
        fingerprint: changes with the names and sizes of the shards; of a repo, with the number of images.
    """

    rows: Any
    image_column: str
    label_column: str
    num_images: int
    class_names: tuple[str, ...]
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What is trained on, and generated images that are not."""

    train: LabelledImages | Stream
    held_out: LabelledImages | None

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    @property
    def num_images(self) -> int:
        return self.train.num_images if isinstance(self.train, Stream) else len(self.train)


def load_training_data(config: PretrainingConfig) -> TrainingData:
    """Open the training images.

    Raises:
        UserError: they cannot be opened, or do not say what their classes are.
    """
    folder = Path(config.data)
    if folder.is_dir() and any(folder.glob("*.tar")):
        return TrainingData(_webdataset(folder, config), None)
    if config.streaming:
        return TrainingData(_hub_stream(config), None)
    images = load_training_images(config.data)
    num_held_out = round(config.held_out_fraction * len(images))
    if not num_held_out:
        return TrainingData(images, None)
    train, held_out = stratified_split(images.labels, num_held_out)
    return TrainingData(images.subset(train), images.subset(held_out))


def _hub_stream(config: PretrainingConfig) -> Stream:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        rows = datasets.load_dataset(config.data, split="train", streaming=True)
    except (FileNotFoundError, ValueError, OSError, DatasetsError) as error:
        raise UserError(f"`datasets` cannot open {config.data!r}: {first_line(error)}") from error
    features = rows.features or {}
    image, label = columns_of(features, config.data)
    splits = rows.info.splits or {}
    known = splits["train"].num_examples if "train" in splits else None
    num_images = _epoch(known, config)
    rows = rows.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
    return Stream(rows, image, label, num_images, tuple(features[label].names), str(num_images))


def _webdataset(folder: Path, config: PretrainingConfig) -> Stream:
    import datasets

    if config.class_names is None:
        raise UserError(f"the tars of {folder} do not name their classes: give --class_names")
    tars = sorted(folder.glob("*.tar"))
    shards = {"train": [str(path) for path in tars]}
    try:
        rows = datasets.load_dataset("webdataset", data_files=shards, split="train", streaming=True)
        found = rows.column_names or list(next(iter(rows)))
    except _stream_errors() as error:
        raise UserError(f"cannot read the tars of {folder}: {first_line(error)}") from error
    image = next((name for name in ("jpg", "jpeg", "png", "webp") if name in found), None)
    if image is None or "cls" not in found:
        raise UserError(f"the tars of {folder} must hold images and .cls files; they hold {', '.join(found)}")
    rows = rows.select_columns([image, "cls"]).cast_column(image, datasets.Image(decode=False))
    class_names = load_class_names(config.class_names).names
    return Stream(rows, image, "cls", _epoch(None, config), class_names, listing_hash(tars))


def _stream_errors() -> tuple[type[Exception], ...]:
    """What reading a stream raises where its shards are damaged, or are not there."""
    from datasets.exceptions import DatasetsError

    return tarfile.TarError, OSError, EOFError, ValueError, IndexError, DatasetsError


def _rows_or_message(rows: Iterable[dict]) -> Iterator[dict | str]:
    try:
        yield from rows
    except _stream_errors() as error:
        yield f"cannot read the stream: {first_line(error)}"


def _epoch(known: int | None, config: PretrainingConfig) -> int:
    num_images = config.images_per_epoch or known
    if num_images is None:
        raise UserError(f"{config.data} does not say how many images it has: give --images_per_epoch")
    return num_images


def make_loader(
    train: LabelledImages | Stream,
    batches: Batches,
    transform: Callable[[Image.Image], Tensor],
    first_step: int,
    last_step: int,
    num_workers: int,
    pin_memory: bool = False,
) -> DataLoader:
    """Micro-batches (images, labels) of the steps first_step to last_step - 1, one after the other."""
    options: dict[str, Any] = {"num_workers": num_workers, "pin_memory": pin_memory}
    if isinstance(train, Stream):
        order = _StreamOrder(train, batches, first_step, last_step)
        return DataLoader(_Decoded(train, transform), batch_sampler=order, collate_fn=WithErrors(_collate), **options)
    return seeded_loader(_Augmented(train, transform), _collate, batches, first_step, last_step, **options)


@dataclasses.dataclass(frozen=True)
class _Augmented:
    images: LabelledImages
    transform: Callable[[Image.Image], Tensor]

    def __call__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images.image(index)), int(self.images.labels[index])


def _collate(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*items, strict=True)
    return torch.stack(images), torch.tensor(labels)


class _StreamOrder(Sampler):
    """Micro-batches of (row, seed of its augmentation), or of the message that the stream is too short or damaged.

    The rows are read in the main process, which hands them to the loader's: a `datasets.IterableDataset` that is read
    in these gives each its own shards, so the order would depend on their number. They are shuffled through a buffer
    by (seed, epoch), and passed over where a run resumes.
    """

    def __init__(self, stream: Stream, batches: Batches, first_step: int, last_step: int) -> None:
        self.stream, self.batches, self.first_step, self.last_step = stream, batches, first_step, last_step

    def __iter__(self) -> Iterator[list[tuple[dict | str, int]]]:
        rows: Iterator = iter(())
        row_epoch, next_place = -1, 0
        for step in range(self.first_step, self.last_step):
            for epoch, places in self.batches.places(step):
                if epoch != row_epoch:
                    seed = derived_seed(self.batches.seed, "order", epoch)
                    rows = _rows_or_message(self.stream.rows.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER))
                    row_epoch, next_place = epoch, 0
                count, kept = 0, collections.deque(maxlen=len(places))
                for row in itertools.islice(rows, places.stop - next_place):
                    if isinstance(row, str):
                        yield [(row, 0)]
                        return
                    count += 1
                    kept.append(row)
                if count < places.stop - next_place:
                    found = f"{next_place + count} images of {self.stream.num_images}"
                    yield [(f"the stream ended after {found}; give --images_per_epoch", 0)]
                    return
                next_place = places.stop
                seeds = (self.batches.sample_seed(epoch, place) for place in places)
                yield list(zip(kept, seeds, strict=True))


@dataclasses.dataclass(frozen=True)
class _Decoded(Dataset):
    """From a row of the stream to its augmented image and label, or to the message of what is wrong with it."""

    stream: Stream
    transform: Callable[[Image.Image], Tensor]

    def __getitem__(self, key: tuple[dict | str, int]) -> tuple[Tensor, int] | str:
        row, seed = key
        if isinstance(row, str):
            return row
        cell, label = row[self.stream.image_column] or {}, row[self.stream.label_column]
        num_classes = len(self.stream.class_names)
        if label not in range(num_classes):
            return f"the label {label} of the stream's image {cell.get('path')} is not one of 0 to {num_classes - 1}"
        try:
            content = read_encoded(cell.get("path") if cell.get("bytes") is None else cell["bytes"])
            image = Image.open(io.BytesIO(content)).convert("RGB")
        except (*BROKEN_IMAGE, TypeError) as error:
            return f"cannot read the image {cell.get('path')} of the stream: {first_line(error)}"
        seed_everything(seed)
        return self.transform(image), label
