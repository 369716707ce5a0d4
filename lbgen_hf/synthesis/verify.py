"""How far a dataset is, and whether what is there is what the plan says."""

import concurrent.futures
import dataclasses
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image

from lbgen_hf.errors import first_line
from lbgen_hf.files import BROKEN_IMAGE
from lbgen_hf.synthesis.folder import DamageError, DatasetFolder
from lbgen_hf.synthesis.leases import alone_in, count_workers
from lbgen_hf.synthesis.plan import Row, Settings
from lbgen_hf.synthesis.shard import planned_columns

# Shards whose times tell the present rate.
_RECENT_SHARDS = 20
# An image that is nowhere brighter than this, of 255, is black.
_BLACK = 8
_MISSING = "is missing"


@dataclasses.dataclass(frozen=True)
class Status:
    """How far a dataset is.

    Attributes:
        shards_done, num_shards, images_done, num_images: counts; an image is done when its shard is.
        workers: that live.
        images_per_second: over the last shards, None before there are two.
        seconds_left: at that rate; None when nobody works or the rate is not known.
    """

    shards_done: int
    num_shards: int
    images_done: int
    num_images: int
    workers: int
    images_per_second: float | None
    seconds_left: float | None


def read_status(dataset: DatasetFolder) -> Status:
    """Look at a dataset; nothing in it is changed."""
    plan = dataset.plan
    unfinished = dataset.unfinished_shards()
    done = [shard for shard in range(plan.num_shards) if shard not in unfinished]
    images_done = sum(len(plan.shard_ids(shard)) for shard in done)
    workers = count_workers(dataset.path)
    rate = _recent_rate(sorted(os.path.getmtime(dataset.shard_path(shard)) for shard in done), plan.shard_size)
    seconds_left = (plan.num_images - images_done) / rate if rate and workers else None
    return Status(len(done), plan.num_shards, images_done, plan.num_images, workers, rate, seconds_left)


def _recent_rate(times: list[float], shard_size: int) -> float | None:
    recent = times[-_RECENT_SHARDS:]
    if len(recent) < 2 or recent[-1] == recent[0]:
        return None
    return (len(recent) - 1) * shard_size / (recent[-1] - recent[0])


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong with a file of `data/`: its name, and what."""

    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


def verify(dataset: DatasetFolder, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Problem]:
    """Check every row against the plan, decode every image, find images that are black or there twice.

    Args:
        dataset: in a folder.
        progress: told after each shard how many images of how many were checked.

    Raises:
        UserError: a shard cannot be read, which says nothing of what is in it.
    """
    plan = dataset.plan
    problems = [Problem(name, "is not in the plan, and load_dataset may read it") for name in dataset.stray_files()]
    first_seen: dict[bytes, Row] = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        for shard in range(plan.num_shards):
            name = plan.shard_name(shard)
            if not dataset.has_shard(shard):
                problems.append(Problem(name, _MISSING))
                continue
            try:
                for row, found in _read_rows(dataset, shard, threads):
                    wrong = _wrong_columns(row, found["columns"], dataset.settings)
                    wrong += [found["problem"]] if found["problem"] else []
                    twin = first_seen.setdefault(found["digest"], row)
                    if twin is not row:
                        wrong.append(f"has the pixels of image {twin.id} in shard {twin.id // plan.shard_size}")
                    problems += [Problem(name, f"image {row.id} {what}") for what in wrong]
            except DamageError as error:
                problems.append(Problem(name, str(error)))
            progress(plan.shard_ids(shard).stop, plan.num_images)
    return problems


def fix(
    dataset: DatasetFolder, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[list[Problem], list[str]]:
    """`verify`, and delete the shards that have a problem: `generate` then makes them again. Other files stay.

    Nobody writes to the folder from the first look on, so that no shard is deleted for what it was before.

    Returns:
        The problems, and the names of the deleted shards.

    Raises:
        UserError: another process is writing to the folder, or as `verify`.
    """
    with alone_in(dataset.path):
        problems = verify(dataset, progress)
        planned = {dataset.plan.shard_name(shard) for shard in range(dataset.plan.num_shards)}
        # A network disk may show a shard that was missing by now.
        names = sorted({problem.name for problem in problems if problem.what != _MISSING} & planned)
        for name in names:
            (dataset.path / name).unlink()
    return problems, names


def _read_rows(
    dataset: DatasetFolder, shard: int, threads: concurrent.futures.Executor
) -> Iterator[tuple[Row, dict[str, Any]]]:
    """The planned rows of a shard, each with its columns and what was found of its image."""
    for batch in dataset.row_groups(shard, check_pages=True):
        images = threads.map(_look_at, [line.pop("image") for line in batch])
        for line, image in zip(batch, images, strict=True):
            yield dataset.plan.row(line.pop("id")), {"columns": line, **image}


def _look_at(cell: dict[str, Any] | None) -> dict[str, Any]:
    encoded = (cell or {}).get("bytes") or b""
    digest = hashlib.sha256(encoded).digest()[:16]
    try:
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
    except BROKEN_IMAGE as error:
        return {"digest": digest, "problem": f"cannot be decoded: {first_line(error)}"}
    channels: Any = image.getextrema()
    black = max(high for _, high in channels) < _BLACK
    return {"digest": digest, "problem": "is black" if black else None}


def _wrong_columns(row: Row, columns: dict[str, Any], settings: Settings) -> list[str]:
    resamples = columns.get("resamples")
    if not isinstance(resamples, int) or not 0 <= resamples <= settings.max_resamples:
        return [f"has resamples {resamples}, the plan says 0 to {settings.max_resamples}"]
    for _ in range(resamples):
        row = row.resampled()
    return [
        f"has {name} {columns.get(name)}, the plan says {value}"
        for name, value in planned_columns(row, settings).items()
        if columns.get(name) != value
    ]
