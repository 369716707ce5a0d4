"""How far a dataset is, and whether what is there is what the plan says."""

import concurrent.futures
import dataclasses
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from lbgen_hf.synthesis.claims import count_live
from lbgen_hf.synthesis.plan import Row
from lbgen_hf.synthesis.settings import Settings, read_settings
from lbgen_hf.synthesis.shard import read_left_out
from lbgen_hf.synthesis.worker import unfinished_shards

# Shards whose times tell the present rate.
_RECENT_SHARDS = 20
# A picture that is nowhere brighter than this is black.
_BLACK = 8


@dataclasses.dataclass(frozen=True)
class Status:
    """How far a dataset is.

    Attributes:
        shards_done, num_shards, images_done, num_images: counts; an image is done when its shard is.
        workers: claims of workers that live.
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


def read_status(out: Path) -> Status:
    """Look at the dataset folder `out`; nothing in it is changed.

    Raises:
        UserError: it holds no dataset of ours.
    """
    settings = read_settings(out)
    plan = settings.plan
    unfinished = set(unfinished_shards(out, settings))
    done = [shard for shard in range(plan.num_shards) if shard not in unfinished]
    images_done = sum(len(plan.shard_ids(shard)) for shard in done)
    workers = count_live(out, unfinished)
    rate = _recent_rate(sorted(os.path.getmtime(plan.shard_path(out, shard)) for shard in done), plan.shard_size)
    seconds_left = (plan.num_images - images_done) / rate if rate and workers else None
    return Status(len(done), plan.num_shards, images_done, plan.num_images, workers, rate, seconds_left)


def _recent_rate(times: list[float], shard_size: int) -> float | None:
    recent = times[-_RECENT_SHARDS:]
    if len(recent) < 2 or recent[-1] == recent[0]:
        return None
    return (len(recent) - 1) * shard_size / (recent[-1] - recent[0])


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong with a shard: its file's name, and what."""

    shard: int
    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


def verify(out: Path, progress: Callable[[int], None] = lambda num_shards: None) -> list[Problem]:
    """Check every row against the plan, decode every picture, find pictures that are black or there twice.

    Args:
        out: the dataset folder.
        progress: told after each shard how many were checked.

    Raises:
        UserError: `out` holds no dataset of ours.
    """
    settings = read_settings(out)
    plan = settings.plan
    problems = []
    first_seen: dict[bytes, Row] = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        for shard in range(plan.num_shards):
            name = plan.shard_path(out, shard).name
            try:
                for row, found in _read_rows(out, settings, shard, threads):
                    wrong = _wrong_columns(row, found["columns"], settings)
                    wrong += [found["problem"]] if found["problem"] else []
                    twin = first_seen.setdefault(found["digest"], row)
                    if twin is not row:
                        wrong.append(f"has the picture of image {twin.id} in shard {twin.id // plan.shard_size}")
                    problems += [Problem(shard, name, f"image {row.id} {what}") for what in wrong]
            except FileNotFoundError:
                problems.append(Problem(shard, name, "is missing"))
            except (ValueError, OSError) as error:
                problems.append(Problem(shard, name, f"cannot be read: {str(error).splitlines()[0]}"))
            progress(shard + 1)
    return problems


def remove_broken(out: Path, problems: list[Problem]) -> None:
    """Delete the shards that have a problem: `generate` then draws them again."""
    for problem in problems:
        (out / "data" / problem.name).unlink(missing_ok=True)


def _read_rows(
    out: Path, settings: Settings, shard: int, threads: concurrent.futures.Executor
) -> Iterator[tuple[Row, dict[str, Any]]]:
    """The planned rows of a shard, each with its columns and what was found of its picture."""
    plan = settings.plan
    path = plan.shard_path(out, shard)
    left_out = set(read_left_out(path, len(plan.shard_ids(shard)), settings.fingerprint))
    planned = (row for row in plan.shard_rows(shard) if row.id not in left_out)
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            lines = file.read_row_group(group).to_pylist()
            pictures = threads.map(_look_at, [line.pop("image")["bytes"] for line in lines])
            for line, picture in zip(lines, pictures, strict=True):
                yield next(planned), {"columns": line, **picture}


def _look_at(encoded: bytes) -> dict[str, Any]:

    digest = hashlib.sha256(encoded).digest()[:16]
    try:
        picture = Image.open(io.BytesIO(encoded)).convert("RGB")
    except OSError as error:
        return {"digest": digest, "problem": f"cannot be decoded: {error}"}
    black = max(high for _, high in picture.getextrema()) < _BLACK
    return {"digest": digest, "problem": "is black" if black else None}


def _wrong_columns(row: Row, columns: dict[str, Any], settings: Settings) -> list[str]:
    for _ in range(columns["redraws"]):
        row = row.redrawn()
    expected = {
        "label": row.class_id,
        "wnid": settings.wnids[row.class_id] if settings.wnids else None,
        "prompt": settings.classes[row.class_id],
        "index": row.index,
        "seed": row.seed,
    }
    return [
        f"has {name} {columns[name]}, the plan says {value}"
        for name, value in expected.items()
        if columns[name] != value
    ]
