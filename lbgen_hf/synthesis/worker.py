"""One worker: it draws shards one after another, while threads encode and write what is drawn."""

import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.claims import Claims
from lbgen_hf.synthesis.plan import Row
from lbgen_hf.synthesis.settings import Settings
from lbgen_hf.synthesis.shard import encode_row, read_left_out, write_shard

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A batch of pictures.

    Attributes:
        pictures: (B, H, W, 3) uint8.
        accepted: per picture, whether it may be stored; the others are drawn again with their next seed.
        scores: per column (`clip_score`, `quality`) a number a picture.
    """

    pictures: np.ndarray
    accepted: list[bool]
    scores: dict[str, list[float]] = dataclasses.field(default_factory=dict)


class Drawer(Protocol):
    """Draws the pictures of some rows. Equal rows give equal pictures, whatever else is in the batch."""

    def __call__(self, rows: list[Row]) -> Drawn: ...


class ShardWriter:
    """Draws whole shards with `drawer`; encoding and writing run on other threads, so that the model never waits.

    Use as a context manager: leaving it waits for the last shard. Memory holds one shard being drawn and one being
    written, encoded, and a few batches of raw pictures.
    """

    def __init__(self, out: Path, settings: Settings, drawer: Drawer, batch_size: int) -> None:
        self.out = out
        self.settings = settings
        self.plan = settings.plan
        self.drawer = drawer
        self.batch_size = batch_size
        threads = min(8, os.cpu_count() or 1)
        self._encoders = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._raw_pictures = threading.BoundedSemaphore(4 * max(batch_size, threads))
        self._writing: Future[None] | None = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._encoders.shutdown()
        self._writer.shutdown()

    def draw(self, shard: int, on_batch: Callable[[int], None], on_written: Callable[[], None]) -> None:
        """Draw a shard and hand it to the threads.

        Args:
            shard: its number.
            on_batch: told of each batch how many pictures are new.
            on_written: called, on the writing thread, once the shard is in its place.

        Raises:
            UserError: the shard before this one could not be written.
        """
        encoded: dict[int, Future[dict[str, Any]]] = {}
        waiting = list(self.plan.shard_rows(shard))
        for _ in range(self.settings.max_redraws + 1):
            refused = []
            for start in range(0, len(waiting), self.batch_size):
                rows = waiting[start : start + self.batch_size]
                drawn = self.drawer(rows)
                for place, row in enumerate(rows):
                    if drawn.accepted[place]:
                        scores = {name: values[place] for name, values in drawn.scores.items()}
                        encoded[row.id] = self._encode(row, drawn.pictures[place], scores)
                    else:
                        refused.append(row.redrawn())
                on_batch(sum(drawn.accepted))
            waiting = refused
            if not waiting:
                break
        left_out = [row.id for row in waiting]
        self.finish()
        self._writing = self._writer.submit(self._write, shard, encoded, left_out, on_written)

    def finish(self) -> None:
        """Wait until all that was drawn is written."""
        if self._writing:
            self._writing.result()

    def _encode(self, row: Row, picture: np.ndarray, scores: dict[str, float]) -> Future[dict[str, Any]]:
        self._raw_pictures.acquire()
        future = self._encoders.submit(encode_row, row, picture, scores, self.settings)
        future.add_done_callback(lambda _: self._raw_pictures.release())
        return future

    def _write(self, shard: int, encoded: dict[int, Future], left_out: list[int], on_written: Callable) -> None:
        rows = [encoded[image_id].result() for image_id in sorted(encoded)]
        write_shard(self.plan.shard_path(self.out, shard), rows, left_out, self.settings)
        on_written()


def unfinished_shards(out: Path, settings: Settings) -> dict[int, str]:
    """The shards that are not done and why, by a look at each one's footer: absent ones, with "", and broken ones."""
    plan, fingerprint = settings.plan, settings.fingerprint
    present = {entry.name for entry in os.scandir(out / "data")}
    unfinished = {}
    for shard in range(plan.num_shards):
        path = plan.shard_path(out, shard)
        if path.name not in present:
            unfinished[shard] = ""
            continue
        try:
            read_left_out(path, len(plan.shard_ids(shard)), fingerprint)
        except ValueError as error:
            unfinished[shard] = str(error)
    return unfinished


def remove_broken_shards(out: Path, settings: Settings) -> list[int]:
    """Delete the shards that are broken, naming each in the log, and return all that are to be drawn."""
    unfinished = unfinished_shards(out, settings)
    for shard, problem in unfinished.items():
        if problem:
            logger.warning("%s; it will be drawn again", problem)
            settings.plan.shard_path(out, shard).unlink(missing_ok=True)
    return list(unfinished)


def work_order(shards: list[int], rank: int, world_size: int) -> Iterator[int]:
    """The order in which a worker looks at shards: its own by arithmetic, then those of the ranks after it."""
    for step in range(world_size):
        yield from shards[(rank + step) % world_size :: world_size]


def draw_shards(
    writer: ShardWriter, shards: Iterable[int], claims: Claims, progress: Callable[[int], None]
) -> list[int]:
    """Draw those shards that are neither finished nor claimed.

    Args:
        writer: draws and writes.
        shards: the numbers, in the order to look at them.
        claims: this worker's.
        progress: told, after each batch, how many pictures this worker holds that are in no finished shard yet.

    Returns:
        The shards that others hold.
    """
    plan, out = writer.plan, writer.out
    held_by_others = []
    in_hand: dict[int, int] = {}

    for shard in shards:
        path = plan.shard_path(out, shard)
        if path.exists():
            continue
        if not claims.take(shard):
            held_by_others.append(shard)
            continue
        if path.exists():  # finished between the look and the claim
            claims.release(shard)
            continue

        def on_batch(num_new: int, shard: int = shard) -> None:
            in_hand[shard] = in_hand.get(shard, 0) + num_new
            progress(sum(list(in_hand.values())))

        def on_written(shard: int = shard) -> None:
            in_hand.pop(shard, None)
            claims.leave(shard)

        writer.draw(shard, on_batch, on_written)
    writer.finish()
    return held_by_others


def require_complete(out: Path, settings: Settings) -> None:
    """Make sure that every shard is done.

    Raises:
        UserError: with how many are not.
    """
    if unfinished := unfinished_shards(out, settings):
        missing = f"{len(unfinished)} of {settings.plan.num_shards} shards are missing or broken"
        raise UserError(f"{out} is not complete: {missing}; run the same lbgen generate again")
