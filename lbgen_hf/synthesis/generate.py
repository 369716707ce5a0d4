"""The whole job: settings and a sampler in, a dataset folder out. Every process that runs it is one worker.

A worker samples shards one after another, while threads encode and write what is sampled.
"""

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lbgen_hf.checks import check_number
from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.card import write_card
from lbgen_hf.synthesis.create import create_folder
from lbgen_hf.synthesis.folder import DatasetFolder
from lbgen_hf.synthesis.leases import Leases
from lbgen_hf.synthesis.plan import Row, Settings
from lbgen_hf.synthesis.sample import Sampler
from lbgen_hf.synthesis.shard import encode_row, write_shard

logger = logging.getLogger(__name__)

MAX_BATCH_SIZE = 4096
# So many images, at all of their seeds, and none passes nor has passed: the thresholds are too high for this model.
_HOPELESS = 20
# Between two looks at the shards of others, which take minutes each.
_LONGEST_PAUSE_S = 30.0

Progress = Callable[[int, int], None]
"""Told how many images there are, in finished shards and in this worker's hands, and how many there will be."""


def no_progress(num_images: int, total: int) -> None:
    """Tell nobody."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Which of the workers of one launcher this process is."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> "Place":
        """As `accelerate launch` and `torchrun` say it; alone without them."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def generate(
    out: Path,
    settings: Settings,
    sampler: Sampler,
    *,
    batch_size: int = 16,
    place: Place | None = None,
    progress: Progress = no_progress,
) -> DatasetFolder:
    """Generate what `out` lacks of the dataset that `settings` describe, beside any number of other workers.

    Returns once the dataset is complete, card and contact sheet included. Killed at any moment and started again, with
    any batch size and number of workers, it ends with the same rows.

    Args:
        out: the dataset folder, made where it is absent.
        settings: of the dataset.
        sampler: samples batches of its rows.
        batch_size: images at a time.
        place: rank and number of the workers of one launcher; workers without a common launcher are each alone.
        progress: told after each batch.

    Returns:
        The dataset.

    Raises:
        UserError: `out` holds something else or another plan, cannot be written, or the disk is full; the model gives
            values that are not finite, or no image passes the thresholds; or the dataset is complete, but shards that
            were made again lack the scores of the others.
    """
    check_batch_size(batch_size)
    place = place or Place.from_environment()
    dataset = create_folder(out, settings)
    with Leases(out) as leases, ShardWriter(dataset, sampler, batch_size) as writer:
        leases.join()
        leases.remove_expired()
        shards = list(work_order(remove_broken_shards(dataset), place.rank, place.world_size))
        sample_all(writer, shards, leases, progress)
    finish(dataset)
    return dataset


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch size that cannot be.

    Raises:
        UserError: it is.
    """
    check_number("--batch-size", batch_size, at_least=1, at_most=MAX_BATCH_SIZE, integer=True)


def finish(dataset: DatasetFolder) -> None:
    """Write the card of a dataset whose shards are all done.

    Raises:
        UserError: no image passed the thresholds, or shards that were made again lack the scores of the others.
    """
    footers = dataset.footers()
    dataset.require_uniform(footers)
    if not any(footer.num_rows for footer in footers):
        raise UserError(f"{dataset.path} holds no image: {_hopeless(dataset.settings)}")
    write_card(dataset)


def sample_all(
    writer: "ShardWriter",
    shards: list[int],
    leases: Leases,
    progress: Progress = no_progress,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Sample those shards that nobody else samples, and wait until the others are done.

    Args:
        writer: samples and writes.
        shards: the numbers, in the order to look at them.
        leases: this worker's.
        progress: told after each batch.
        sleep: waits for other workers.
    """
    dataset = writer.dataset

    def report(num_in_hand: int) -> None:
        total = dataset.plan.num_images
        progress(min(total, dataset.num_images_written() + num_in_hand), total)

    report(0)
    pause = 1.0
    while shards:
        held_by_others = _sample_free_shards(writer, shards, leases, report)
        if held_by_others:
            sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        shards = [shard for shard in held_by_others if not dataset.has_shard(shard)]
        report(0)


def _sample_free_shards(
    writer: "ShardWriter", shards: Iterable[int], leases: Leases, report: Callable[[int], None]
) -> list[int]:
    """Sample those shards that are neither finished nor leased; return those that others hold.

    `report` is told, after each batch, how many images this worker holds that are in no finished shard yet.
    """
    dataset = writer.dataset
    held_by_others = []
    in_hand: dict[int, int] = {}

    for shard in shards:
        if dataset.has_shard(shard):
            continue
        if not leases.take(shard):
            held_by_others.append(shard)
            continue
        if dataset.has_shard(shard):  # finished between the look and the lease
            leases.release(shard)
            continue

        def on_batch(num_new: int, shard: int = shard) -> None:
            in_hand[shard] = in_hand.get(shard, 0) + num_new
            report(sum(list(in_hand.values())))

        def on_written(shard: int = shard) -> None:
            in_hand.pop(shard, None)
            leases.let_expire(shard)

        writer.sample(shard, on_batch, on_written)
    writer.finish()
    return held_by_others


def work_order(shards: list[int], rank: int, world_size: int) -> Iterator[int]:
    """The order in which a worker looks at shards: its own by arithmetic, then those of the ranks after it."""
    for step in range(world_size):
        yield from shards[(rank + step) % world_size :: world_size]


def remove_broken_shards(dataset: DatasetFolder) -> list[int]:
    """Delete the shards that are broken, naming each in the log, and return all that are to be sampled.

    Raises:
        UserError: a shard cannot be read, which does not make it broken.
    """
    unfinished = dataset.unfinished_shards()
    for shard, problem in unfinished.items():
        if problem:
            logger.warning("%s; it will be generated again", problem)
            dataset.shard_path(shard).unlink(missing_ok=True)
    return list(unfinished)


class ShardWriter:
    """Samples whole shards; encoding and writing run on other threads, so that the model never waits.

    Use as a context manager: leaving it waits for the last shard. Memory holds one shard being sampled and one being
    written, encoded, and a few batches of raw images.
    """

    def __init__(self, dataset: DatasetFolder, sampler: Sampler, batch_size: int) -> None:
        self.dataset = dataset
        self.settings = dataset.settings
        self.sampler = sampler
        self.batch_size = batch_size
        threads = min(8, os.cpu_count() or 1)
        self._encoders = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._raw_images = threading.BoundedSemaphore(4 * max(batch_size, threads))
        self._writing: Future[None] | None = None
        self._num_accepted = self._num_rejected = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._encoders.shutdown()
        self._writer.shutdown()

    def sample(self, shard: int, on_batch: Callable[[int], None], on_written: Callable[[], None]) -> None:
        """Sample a shard and hand it to the threads.

        Args:
            shard: its number.
            on_batch: told of each batch how many images are new.
            on_written: called, on the writing thread, once the shard is in its place.

        Raises:
            UserError: the shard before this one could not be written, or no image passes the thresholds.
        """
        encoded: dict[int, Future[dict[str, Any]]] = {}
        waiting = list(self.dataset.plan.shard_rows(shard))
        for _ in range(self.settings.max_resamples + 1):
            refused = []
            for start in range(0, len(waiting), self.batch_size):
                rows = waiting[start : start + self.batch_size]
                samples = self.sampler(rows)
                for place, row in enumerate(rows):
                    if samples.accepted[place]:
                        scores = {name: values[place] for name, values in samples.scores.items()}
                        encoded[row.id] = self._encode(row, samples.pixels[place], scores)
                    else:
                        refused.append(row.resampled())
                on_batch(sum(samples.accepted))
            waiting = refused
            if not waiting:
                break
        rejected = [row.id for row in waiting]
        self._num_accepted += len(encoded)
        self._num_rejected += len(rejected)
        is_hopeless = not self._num_accepted and self._num_rejected >= _HOPELESS
        if is_hopeless and not _holds_images(self.dataset):
            raise UserError(_hopeless(self.settings))
        self.finish()
        self._writing = self._writer.submit(self._write, shard, encoded, rejected, on_written)

    def finish(self) -> None:
        """Wait until all that was sampled is written."""
        if self._writing:
            self._writing.result()

    def _encode(self, row: Row, pixels: np.ndarray, scores: dict[str, float]) -> Future[dict[str, Any]]:
        self._raw_images.acquire()
        future = self._encoders.submit(encode_row, row, pixels, scores, self.settings)
        future.add_done_callback(lambda _: self._raw_images.release())
        return future

    def _write(self, shard: int, encoded: dict[int, Future], rejected: list[int], on_written: Callable) -> None:
        rows = [encoded[image_id].result() for image_id in sorted(encoded)]
        write_shard(self.dataset.shard_path(shard), rows, rejected, self.settings)
        on_written()


def _holds_images(dataset: DatasetFolder) -> bool:
    """Whether a finished shard has an image, which an earlier run or another worker may have made."""
    finished = filter(dataset.has_shard, range(dataset.plan.num_shards))
    return any(dataset.footer(shard).num_rows for shard in finished)


def _hopeless(settings: Settings) -> str:
    """Why nothing was stored, and what to do."""
    tries = f"none of the images passed at any of {settings.max_resamples + 1} seeds"
    thresholds = {"--min-clip-score": settings.min_clip_score, "--min-quality": settings.min_quality}
    given = " and ".join(f"{name} {value}" for name, value in thresholds.items() if value is not None)
    if given:
        return f"{tries} the thresholds ({given}); lower them and give another --out"
    return f"{tries}: they are black, or the safety checker flags them; use another model"
