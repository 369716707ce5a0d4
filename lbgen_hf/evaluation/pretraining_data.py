"""Training batches as a function of (seed, step): any step's batch can be made without those before it.

The order of images depends on (seed, epoch), the augmentation of an image on (seed, epoch, its place in the epoch).
Neither depends on the number of loader processes, so a resumed run sees what the first one would have seen.
"""

import collections
import dataclasses
import hashlib
import io
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from lbgen_hf.class_names import load_class_names
from lbgen_hf.errors import UserError, first_line
from lbgen_hf.evaluation.images import LabelledImages, image_folder
from lbgen_hf.evaluation.pretraining_config import PretrainingConfig
from lbgen_hf.evaluation.splits import stratified_split

_SHUFFLE_BUFFER = 10_000


def derived_seed(*parts: int | str) -> int:
    """A seed in [0, 2**32) of any parts."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def seed_everything(seed: int) -> None:
    """Seed all three generators that augmentation, mixup and stochastic depth use."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@dataclasses.dataclass(frozen=True)
class Stream:
    """Images that can only be read in order.

    Attributes:
        rows: a `datasets.IterableDataset`, its images not decoded.
        image_column, label_column: of the rows.
        num_images: an epoch.
        class_names: of all classes.
    """

    rows: Any
    image_column: str
    label_column: str
    num_images: int
    class_names: tuple[str, ...]


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
    images = open_images(config.data)
    num_held_out = round(config.held_out_fraction * len(images))
    if not num_held_out:
        return TrainingData(images, None)
    train, held_out = stratified_split(images.labels, num_held_out)
    return TrainingData(images.subset(train), images.subset(held_out))


def open_images(source: str) -> LabelledImages:
    """All images of a folder of class folders, or of the training split of a `datasets` repo or folder."""
    from lbgen_hf.evaluation.transfer import hub_splits, is_image_folder

    return image_folder(Path(source)) if is_image_folder(Path(source)) else hub_splits(source)["train"]


def _hub_stream(config: PretrainingConfig) -> Stream:
    import datasets
    from datasets.exceptions import DatasetsError

    from lbgen_hf.evaluation.transfer import columns_of

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
    return Stream(rows, image, label, num_images, tuple(features[label].names))


def _webdataset(folder: Path, config: PretrainingConfig) -> Stream:
    import datasets

    tars = sorted(str(path) for path in folder.glob("*.tar"))
    rows = datasets.load_dataset("webdataset", data_files={"train": tars}, split="train", streaming=True)
    found = rows.column_names or list(next(iter(rows)))
    image = next((name for name in ("jpg", "jpeg", "png", "webp") if name in found), None)
    if image is None or "cls" not in found:
        raise UserError(f"the tars of {folder} must hold images and .cls files; they hold {', '.join(found)}")
    if config.class_names is None:
        raise UserError(f"the tars of {folder} do not name their classes: give --class_names")
    rows = rows.select_columns([image, "cls"]).cast_column(image, datasets.Image(decode=False))
    return Stream(rows, image, "cls", _epoch(None, config), load_class_names(config.class_names).names)


def _epoch(known: int | None, config: PretrainingConfig) -> int:
    num_images = config.images_per_epoch or known
    if num_images is None:
        raise UserError(f"{config.data} does not say how many images it has: give --images_per_epoch")
    return num_images


@dataclasses.dataclass(frozen=True)
class Batches:
    """How an epoch is cut into micro-batches: of one step, `num_processes` x `accumulation`, in that order.

    Attributes:
        num_images: an epoch.
        batch_size: of a micro-batch.
        accumulation: micro-batches a step and process.
        num_processes, process: of the run, and this one.
        seed: of order and augmentation.
    """

    num_images: int
    batch_size: int
    accumulation: int
    num_processes: int
    process: int
    seed: int

    @property
    def images_per_step(self) -> int:
        return self.batch_size * self.accumulation * self.num_processes

    @property
    def steps_per_epoch(self) -> int:
        return self.num_images // self.images_per_step

    def places(self, step: int) -> Iterator[tuple[int, range]]:
        """This process's micro-batches of a step: their epoch, and their places in the epoch's order."""
        epoch, position = divmod(step, self.steps_per_epoch)
        for micro in range(self.accumulation):
            start = position * self.images_per_step + (micro * self.num_processes + self.process) * self.batch_size
            yield epoch, range(start, start + self.batch_size)

    def sample_seed(self, epoch: int, place: int) -> int:
        """Of an image's augmentation."""
        return derived_seed(self.seed, "image", epoch, place)


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
        dataset = _StreamBatches(train, batches, transform, first_step, last_step)
        return DataLoader(dataset, batch_size=None, **options)
    sampler = _SeededOrder(batches, first_step, last_step)
    return DataLoader(_Augmented(train, transform), batch_sampler=sampler, collate_fn=_collate, **options)


class _SeededOrder(Sampler):
    """Micro-batches of (image, seed of its augmentation)."""

    def __init__(self, batches: Batches, first_step: int, last_step: int) -> None:
        self.batches, self.first_step, self.last_step = batches, first_step, last_step

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.batches.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order_epoch, order = -1, []
        for step in range(self.first_step, self.last_step):
            for epoch, places in self.batches.places(step):
                if epoch != order_epoch:
                    rng = torch.Generator().manual_seed(derived_seed(self.batches.seed, "order", epoch))
                    order_epoch, order = epoch, torch.randperm(self.batches.num_images, generator=rng).tolist()
                yield [(order[place], self.batches.sample_seed(epoch, place)) for place in places]


class _Augmented(Dataset):
    def __init__(self, images: LabelledImages, transform: Callable) -> None:
        self.images, self.transform = images, transform

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | str:
        index, seed = key
        try:
            image = self.images.image(index)
        except UserError as error:  # raised in the main process, where it is one line
            return str(error)
        seed_everything(seed)
        return self.transform(image), int(self.images.labels[index])


def _collate(items: list) -> tuple[Tensor, Tensor] | str:
    broken = next((item for item in items if isinstance(item, str)), None)
    if broken is not None:
        return broken
    images, labels = zip(*items, strict=True)
    return torch.stack(images), torch.tensor(labels)


class _StreamBatches(IterableDataset):
    """Micro-batches of a stream. Every loader process reads the whole stream and decodes its own batches.

    Rows are shuffled through a buffer by (seed, epoch), and passed over undecoded where a run resumes.
    """

    def __init__(self, stream: Stream, batches: Batches, transform: Callable, first_step: int, last_step: int) -> None:
        self.stream, self.batches, self.transform = stream, batches, transform
        self.first_step, self.last_step = first_step, last_step

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | str]:
        worker = torch.utils.data.get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        numbers = itertools.count()
        rows: Iterator = iter(())
        row_epoch, next_place = -1, 0
        for step in range(self.first_step, self.last_step):
            for epoch, places in self.batches.places(step):
                if epoch != row_epoch:
                    seed = derived_seed(self.batches.seed, "order", epoch)
                    rows = iter(self.stream.rows.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER))
                    row_epoch, next_place = epoch, 0
                wanted = next(numbers) % workers == mine
                count, kept = 0, collections.deque(maxlen=len(places))
                for row in itertools.islice(rows, places.stop - next_place):
                    count += 1
                    kept.append(row)
                if count < places.stop - next_place:
                    yield (
                        f"the stream ended after {next_place + count} images of {self.stream.num_images}; "
                        "give --images_per_epoch"
                    )
                    return
                next_place = places.stop
                if wanted:
                    samples = [self._sample(row, epoch, place) for row, place in zip(kept, places, strict=True)]
                    yield _collate(samples)

    def _sample(self, row: dict, epoch: int, place: int) -> tuple[Tensor, int] | str:
        cell = row[self.stream.image_column]
        try:
            image = Image.open(io.BytesIO(cell["bytes"])).convert("RGB")
        except (OSError, ValueError, SyntaxError, TypeError) as error:
            return f"cannot read the image {cell.get('path')} of the stream: {first_line(error)}"
        seed_everything(self.batches.sample_seed(epoch, place))
        return self.transform(image), int(row[self.stream.label_column])
