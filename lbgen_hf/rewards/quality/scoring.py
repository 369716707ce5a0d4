"""Score a folder of pictures or a dataset's shards; a run that was killed goes on where it stood."""

import csv
import dataclasses
import io
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from lbgen_hf.errors import UserError
from lbgen_hf.rewards.quality.scorer import MIN_IMAGE_SIZE, QualityScorer

COLUMN = "quality"
SCORER_COLUMN = "quality_scorer"
PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_CHUNK = 100  # pictures in memory at a time; also the rows of a row group
_SAVE_EVERY_S = 10.0
_SCORER_KEY = b"lbgen.quality_scorer"

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Scored:
    """What a folder holds: where the scores are, the scores, and how many of them were there before this run."""

    written_to: Path
    scores: list[float]
    known: int


def score_folder(
    folder: Path,
    name: str,
    load_scorer: Callable[[str], QualityScorer],
    *,
    batch_size: int = 16,
    progress: Progress = lambda done, total: None,
) -> Scored:
    """Write a column `quality`: into the shards of a dataset folder, else into `metadata.csv` of a folder of pictures.

    Both are what `datasets.load_dataset` reads. Scores of the same scorer that are there already are kept.

    Args:
        folder: a dataset's, with parquet files that have an `image` column; or one of pictures, at any depth.
        name: the scorer's, recorded beside the scores.
        load_scorer: called with `name` once it is known that there is something to score.
        batch_size: pictures at a time; those of one size go together.
        progress: told how many of how many pictures are done.

    Raises:
        UserError: the folder holds nothing to score, or a picture cannot be read or is too small. What was scored
            before is kept.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1, got {batch_size}")
    shards = [path for path in _files_below(folder, (".parquet",)) if "image" in pq.read_schema(path).names]
    if shards:
        return _score_shards(folder, shards, name, load_scorer, batch_size, progress)
    pictures = _files_below(folder, PICTURE_SUFFIXES)
    if pictures:
        return _score_pictures(folder, pictures, name, load_scorer, batch_size, progress)
    raise UserError(
        f"{folder} has no pictures ({', '.join(PICTURE_SUFFIXES)}) and no parquet files with an image column"
    )


def _files_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def read_picture(encoded: bytes, label: str) -> Tensor:
    """An image file to (3, H, W) in [0, 1].

    Raises:
        UserError: it is no picture, or too small; `label` says which.
    """
    try:
        picture = Image.open(io.BytesIO(encoded)).convert("RGB")
    except OSError:
        raise UserError(f"{label} cannot be read as a picture") from None
    if min(picture.size) < MIN_IMAGE_SIZE:
        width, height = picture.size
        raise UserError(
            f"{label} is {width}x{height}; pictures of at least {MIN_IMAGE_SIZE}x{MIN_IMAGE_SIZE} are scored"
        )
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255


@torch.no_grad()
def score_images(scorer: QualityScorer, images: Iterable[Tensor], batch_size: int) -> list[float]:
    """Scores of images (3, H, W) of any sizes, in their order.

    Raises:
        UserError: a score is not finite.
    """
    images = list(images)
    by_size: dict[torch.Size, list[int]] = {}
    for place, image in enumerate(images):
        by_size.setdefault(image.shape, []).append(place)
    scores = torch.empty(len(images))
    for places in by_size.values():
        for start in range(0, len(places), batch_size):
            batch = places[start : start + batch_size]
            scores[batch] = scorer(torch.stack([images[place] for place in batch])).float()
    if not scores.isfinite().all():
        raise UserError("the scorer gives values that are not finite; try --dtype float32")
    return scores.tolist()


def _score_pictures(
    folder: Path,
    pictures: list[Path],
    name: str,
    load_scorer: Callable[[str], QualityScorer],
    batch_size: int,
    progress: Progress,
) -> Scored:
    table = folder / "metadata.csv"
    rows = _read_table(table)
    names = [path.relative_to(folder).as_posix() for path in pictures]
    waiting = [file for file in names if rows.get(file, {}).get(SCORER_COLUMN) != name]
    known = len(names) - len(waiting)
    scorer = load_scorer(name) if waiting else None
    last_saved = time.monotonic()
    try:
        for start in range(0, len(waiting), _CHUNK):
            chunk = waiting[start : start + _CHUNK]
            images = [read_picture((folder / file).read_bytes(), file) for file in chunk]
            for file, score in zip(chunk, score_images(scorer, images, batch_size), strict=True):
                rows[file] = {**rows.get(file, {"file_name": file}), COLUMN: f"{score:.5f}", SCORER_COLUMN: name}
            progress(known + start + len(chunk), len(names))
            if time.monotonic() - last_saved > _SAVE_EVERY_S:
                _write_table(table, rows)
                last_saved = time.monotonic()
    finally:
        if waiting:
            _write_table(table, rows)
    return Scored(table, [float(rows[file][COLUMN]) for file in names], known)


def _read_table(table: Path) -> dict[str, dict[str, str]]:
    if not table.exists():
        return {}
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "file_name" not in (reader.fieldnames or []):
            raise UserError(f"{table} has no column file_name; move it away, and a new one is written")
        return {row["file_name"]: row for row in reader}


def _write_table(table: Path, rows: dict[str, dict[str, str]]) -> None:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row)) or ["file_name"]
    draft = table.with_name(f".{table.name}.tmp")
    with draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows.values())
    os.replace(draft, table)


def _score_shards(
    folder: Path,
    shards: list[Path],
    name: str,
    load_scorer: Callable[[str], QualityScorer],
    batch_size: int,
    progress: Progress,
) -> Scored:
    footers = {path: pq.read_metadata(path) for path in shards}
    total = sum(footer.num_rows for footer in footers.values())
    waiting = [path for path in shards if footers[path].metadata.get(_SCORER_KEY, b"").decode() != name]
    done = known = total - sum(footers[path].num_rows for path in waiting)
    scorer = load_scorer(name) if waiting else None
    for path in waiting:
        for rows in _score_shard(path, name, scorer, batch_size):
            done += rows
            progress(done, total)
    _declare_column(folder / "README.md")
    scores = [score for path in shards for score in pq.read_table(path, columns=[COLUMN])[COLUMN].to_pylist()]
    return Scored(folder, scores, known)


def _score_shard(path: Path, name: str, scorer: QualityScorer, batch_size: int) -> Iterable[int]:
    """Write the shard again with its column, a row group at a time, then rename it. Yields numbers of rows."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        with pq.ParquetFile(path) as source:
            schema = _with_column(source.schema_arrow, name)
            with pq.ParquetWriter(draft, schema, write_page_checksum=True, write_page_index=True) as writer:
                first = 0
                for batch in source.iter_batches(_CHUNK):
                    cells = batch.column("image").to_pylist()
                    labels = [f"row {first + place} of {path.name}" for place in range(len(cells))]
                    images = [read_picture(_bytes(cell), label) for cell, label in zip(cells, labels, strict=True)]
                    scores = pa.array(score_images(scorer, images, batch_size), pa.float32())
                    columns = {column: batch.column(column) for column in batch.schema.names} | {COLUMN: scores}
                    writer.write_table(pa.table([columns[column] for column in schema.names], schema=schema))
                    first += len(cells)
                    yield len(cells)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _bytes(cell: dict | bytes | None) -> bytes:
    """Of a cell of an image column, as `datasets` or as others write it; empty where there are none."""
    encoded = cell.get("bytes") if isinstance(cell, dict) else cell
    return encoded or b""


def _with_column(schema: pa.Schema, name: str) -> pa.Schema:
    """The schema with the column `quality`, declared to `datasets` too, and the scorer's name."""
    metadata = {**(schema.metadata or {}), _SCORER_KEY: name.encode()}
    if b"huggingface" in metadata:
        declared = json.loads(metadata[b"huggingface"])
        declared["info"]["features"][COLUMN] = {"dtype": "float32", "_type": "Value"}
        metadata[b"huggingface"] = json.dumps(declared).encode()
    if COLUMN in schema.names:
        schema = schema.set(schema.get_field_index(COLUMN), pa.field(COLUMN, pa.float32()))
    else:
        schema = schema.append(pa.field(COLUMN, pa.float32()))
    return schema.with_metadata(metadata)


def _declare_column(card: Path) -> None:
    """Add the column to the features that a dataset card lists: `load_dataset` holds to that list."""
    from huggingface_hub import metadata_load, metadata_save

    metadata = metadata_load(card) if card.exists() else None
    features = ((metadata or {}).get("dataset_info") or {}).get("features")
    if features and COLUMN not in [feature["name"] for feature in features]:
        features.append({"name": COLUMN, "dtype": "float32"})
        metadata_save(card, metadata)
