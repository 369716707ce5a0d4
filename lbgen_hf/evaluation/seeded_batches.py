"""Training batches as a function of (seed, step): any step's batch can be made without those before it.

The order of images depends on (seed, epoch), the augmentation of an image on (seed, epoch, its place in the epoch).
Neither depends on the number of loader processes, so a resumed run sees what the first one would have seen.
"""

import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lbgen_hf.errors import UserError


def derived_seed(*parts: int | str) -> int:
    """A seed in [0, 2**32) of any parts."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def seed_everything(seed: int) -> None:
    """Seed all three generators that augmentation, mixup and stochastic depth use."""
    random.seed(seed)
    np.random.seed(seed)
    if torch.cuda.is_initialized() or torch.backends.mps.is_available():
        torch.manual_seed(seed)
    else:  # the same numbers; torch.manual_seed would format a traceback for a GPU that may come, 1 ms a sample
        torch.default_generator.manual_seed(seed)


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


def seeded_loader(
    sample: Callable[[int], Any],
    collate: Callable[[list], Any],
    batches: Batches,
    first_step: int,
    last_step: int,
    **options: Any,
) -> DataLoader:
    """Micro-batches of the steps first_step to last_step - 1, one after the other.

    Args:
        sample: from the index of an image to what the model is given of it; augmented by any of the three generators.
        collate: from the samples of a micro-batch to the micro-batch.
        batches: how an epoch is cut.
        first_step, last_step: of the run.
        options: of the `DataLoader`.

    Returns:
        Its items are micro-batches, or the message of the error that the user can fix in one of their images.
    """
    order = _SeededOrder(batches, first_step, last_step)
    return DataLoader(_Seeded(sample), batch_sampler=order, collate_fn=WithErrors(collate), **options)


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


class _Seeded(Dataset):
    def __init__(self, sample: Callable[[int], Any]) -> None:
        self.sample = sample

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, seed = key
        seed_everything(seed)
        try:
            return self.sample(index)
        except UserError as error:  # raised in the main process, where it is one line
            return str(error)


@dataclasses.dataclass(frozen=True)
class WithErrors:
    """Collates samples, or passes on the first message among them."""

    collate: Callable[[list], Any]

    def __call__(self, items: list) -> Any:
        return next((item for item in items if isinstance(item, str)), None) or self.collate(items)
