"""The whole job: a class list and a model in, a dataset folder out. Every process that runs it is one worker."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.card import write_card
from lbgen_hf.synthesis.claims import EXPIRY_S, Claims
from lbgen_hf.synthesis.settings import WORK_FOLDER, Settings, open_folder
from lbgen_hf.synthesis.worker import Drawer, ShardWriter, draw_shards, remove_broken_shards, work_order

Progress = Callable[[int, int], None]
"""Told how many pictures there are, in finished shards and in this worker's hands, and how many there will be."""


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
    drawer: Drawer,
    *,
    batch_size: int = 16,
    place: Place | None = None,
    progress: Progress = no_progress,
) -> None:
    """Draw what `out` lacks of the dataset that `settings` describe, beside any number of other workers.

    Returns once the dataset is complete, card and contact sheet included. Killed at any moment and started again, with
    any batch size and number of workers, it ends with the same rows.

    Args:
        out: the dataset folder, made where it is absent.
        settings: of the dataset.
        drawer: draws batches of its rows.
        batch_size: pictures at a time.
        place: rank and number of the workers of one launcher; workers without a common launcher are each alone.
        progress: told after each batch.

    Raises:
        UserError: `out` holds something else or another plan, cannot be written, or the disk is full.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {batch_size}")
    place = place or Place.from_environment()
    open_folder(out, settings)
    _remove_old_work(out)

    def report(num_in_hand: int) -> None:
        total = settings.plan.num_images
        progress(min(total, num_finished_images(out, settings) + num_in_hand), total)

    with Claims(out) as claims, ShardWriter(out, settings, drawer, batch_size) as writer:
        todo = list(work_order(remove_broken_shards(out, settings), place.rank, place.world_size))
        report(0)
        while todo:
            held_by_others = draw_shards(writer, todo, claims, report)
            if held_by_others:
                time.sleep(1)
            todo = [shard for shard in held_by_others if not settings.plan.shard_path(out, shard).exists()]
            report(0)
    write_card(out, settings)


def num_finished_images(out: Path, settings: Settings) -> int:
    """How many pictures the finished shards hold, by their names alone."""
    finished = sum(entry.name.endswith(".parquet") for entry in os.scandir(out / "data"))
    return min(settings.plan.num_images, finished * settings.plan.shard_size)


def _remove_old_work(out: Path) -> None:
    """Half-written shards of workers that died, and expired claims."""
    work = out / WORK_FOLDER
    for path in [*work.glob("*.tmp"), *work.glob("claims/*")]:
        with contextlib.suppress(FileNotFoundError):  # its owner lives, and has just renamed or removed it
            if time.time() - path.stat().st_mtime > EXPIRY_S:
                path.unlink()
