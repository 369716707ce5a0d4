"""Score a folder of images or a dataset's shards; a run that was killed is resumable."""

import csv
import dataclasses
import io
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS
from huggingface_hub import metadata_load, metadata_save
from PIL import Image
from torch import Tensor

from lbgen_hf.checks import check_number
from lbgen_hf.errors import UserError, first_line
from lbgen_hf.files import BROKEN_IMAGE, IMAGE_SUFFIXES, locked_from_outside, require_writable
from lbgen_hf.rewards.quality.scorer import MIN_IMAGE_SIZE, QualityScorer
from lbgen_hf.synthesis.card import write_card
from lbgen_hf.synthesis.folder import RECORD, DatasetFolder
from lbgen_hf.synthesis.leases import alone_in
from lbgen_hf.synthesis.shard import SCORER_KEY

COLUMN = "quality"
SCORER_COLUMN = "quality_scorer"
# The names that `datasets` takes for folders of splits, at any depth: its words, alone or set apart.
_SPLIT_WORDS = "|".join(word for words in SPLIT_KEYWORDS.values() for word in words)
_SPLIT_FOLDER = re.compile(rf"(.*[{NON_WORDS_CHARS}])?({_SPLIT_WORDS})([{NON_WORDS_CHARS}].*)?")
_CHUNK = 100  # images in memory at a time; also the rows of a row group
_SAVE_EVERY_S = 10.0

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Scored:
    """The scores of a folder: the file or folder that they are in, and how many of them were there before this run."""

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
    """Write a column `quality`: into the shards of a dataset folder, else into `metadata.csv` of a folder of images.

    Both are what `datasets.load_dataset` reads: each folder of a split (train, validation...) has a table of its own.
    Scores of the same scorer that are there already are kept. Where `datasets` takes the names of the images' folders
    for labels, the tables have them too: beside a table they do not count.

    Args:
        folder: a dataset that `lbgen generate` made; another one, with parquet files that have an `image` column; or
            images, at any depth.
        name: the scorer's, recorded beside the scores.
        load_scorer: called with `name` once it is known that there is something to score.
        batch_size: images at a time; those of one size go together.
        progress: told how many of how many images are done.

    Raises:
        UserError: the folder holds nothing to score, or is being written; a file cannot be read, an image is too small,
            or a dataset of `lbgen generate` is not complete. What was scored before is kept.
    """
    check_number("--batch-size", batch_size, at_least=1, at_most=4096, integer=True)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    if (folder / RECORD).exists():
        dataset = DatasetFolder(folder)
        with alone_in(folder):
            dataset.require_complete()
            shards = [dataset.shard_path(shard) for shard in range(dataset.plan.num_shards)]
            scored = _score_shards(folder, shards, name, load_scorer, batch_size, progress)
            write_card(DatasetFolder(folder))
        return scored
    if shards := [path for path in _files_below(folder, (".parquet",)) if "image" in _read_footer(path)[0].names]:
        with locked_from_outside(folder):
            card = _read_card(folder / "README.md")
            scored = _score_shards(folder, shards, name, load_scorer, batch_size, progress)
            _declare_column(folder / "README.md", card)
        return scored
    if images := _files_below(folder, IMAGE_SUFFIXES):
        with locked_from_outside(folder):
            return _score_images(folder, images, name, load_scorer, batch_size, progress)
    raise UserError(f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)}) and no parquet files with an image column")


def _files_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and not path.is_dir())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def read_image(encoded: bytes, label: str) -> Tensor:
    """An image file to (3, H, W) uint8.

    Raises:
        UserError: it is no image, or one that is too small or too large; `label` says which.
    """
    try:
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
    except BROKEN_IMAGE:
        raise UserError(f"{label} cannot be read as an image") from None
    if min(image.size) < MIN_IMAGE_SIZE:
        width, height = image.size
        raise UserError(f"{label} is {width}x{height}; images of at least {MIN_IMAGE_SIZE}x{MIN_IMAGE_SIZE} are scored")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@torch.no_grad()
def score_images(scorer: QualityScorer, images: Iterable[Tensor], batch_size: int) -> list[float]:
    """Scores of images (3, H, W) uint8 of any sizes, in their order.

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
            scores[batch] = scorer(torch.stack([images[place] for place in batch]) / 255).float()
    if not scores.isfinite().all():
        raise UserError("the scorer gives values that are not finite; try --dtype float32")
    return scores.tolist()


class _Table:
    """`metadata.csv` of a folder: its rows by image, and the images that it is for.

    Args:
        folder: where it is, or will be.
        images: in the folder, at any depth.

    Raises:
        UserError: it is damaged, has a column `quality` of another origin, or `datasets` would not read it.
    """

    def __init__(self, folder: Path, images: list[Path]) -> None:
        self.path = folder / "metadata.csv"
        for other in (folder / "metadata.jsonl", folder / "metadata.parquet"):
            if other.exists():
                raise UserError(f"load_dataset reads no metadata.csv beside {other}; turn that into one first")
        self.rows = _read_table(self.path)
        if any(row.get(COLUMN) and not row.get(SCORER_COLUMN) for row in self.rows.values()):
            raise UserError(f"{self.path} has a column {COLUMN} of another origin; rename it, so that it is not lost")
        self.images = {_file_name(path.relative_to(folder)): path for path in images}

    def write(self) -> None:
        """Write it, unless it has no row."""
        if not self.rows:
            return
        columns = list(dict.fromkeys(column for row in self.rows.values() for column in row))
        draft = self.path.with_name(f".{self.path.name}.tmp")
        with draft.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows.values())
        os.replace(draft, self.path)


def _score_images(
    folder: Path,
    images: list[Path],
    name: str,
    load_scorer: Callable[[str], QualityScorer],
    batch_size: int,
    progress: Progress,
) -> Scored:
    tables = {place: _Table(place, found) for place, found in _by_split(folder, images).items()}
    # Images beside the folders of splits are none of the dataset that `datasets` reads.
    unscored = _unscored_rows([table for place, table in tables.items() if place != folder])
    unscored |= _unscored_rows([table for place, table in tables.items() if place == folder])
    cells = [(table, file) for table in tables.values() for file in table.images]
    waiting = [(table, file) for table, file in cells if not _is_scored(table.rows.get(file, {}), name)]
    known = len(cells) - len(waiting)
    if waiting:
        for place in tables:
            require_writable(place)
    scorer: Any = load_scorer(name) if waiting else None
    last_saved = time.monotonic()
    try:
        for start in range(0, len(waiting), _CHUNK):
            chunk = waiting[start : start + _CHUNK]
            decoded = [_read_file(table.images[file], folder) for table, file in chunk]
            for (table, file), score in zip(chunk, score_images(scorer, decoded, batch_size), strict=True):
                scores = {COLUMN: f"{score:.5f}", SCORER_COLUMN: name}
                table.rows[file] = unscored[table.images[file]] | table.rows.get(file, {}) | scores
            progress(known + start + len(chunk), len(cells))
            if time.monotonic() - last_saved > _SAVE_EVERY_S:
                for table in tables.values():
                    table.write()
                last_saved = time.monotonic()
    finally:
        for table in tables.values():
            table.write()
    written_to = folder if len(tables) > 1 else next(iter(tables.values())).path
    return Scored(written_to, [float(table.rows[file][COLUMN]) for table, file in cells], known)


def _by_split(folder: Path, images: list[Path]) -> dict[Path, list[Path]]:
    """The images by the folder of the split that `datasets` takes them for; those of no split by `folder` itself."""
    by_split: dict[Path, list[Path]] = {}
    for image in images:
        parents = image.relative_to(folder).parts[:-1]
        depth = next((i for i, part in enumerate(parents, start=1) if _SPLIT_FOLDER.fullmatch(part)), 0)
        by_split.setdefault(folder.joinpath(*parents[:depth]), []).append(image)
    return by_split


def _read_file(path: Path, folder: Path) -> Tensor:
    """An image to (3, H, W) uint8; an error names its place in `folder`."""
    label = _file_name(path.relative_to(folder))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{label} cannot be read: {error.strerror or error}") from error
    return read_image(content, label)


def _file_name(path: Path) -> str:
    """A path as a UTF-8 table has it, whatever the locale; bytes that are no UTF-8 are escaped."""
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


def _unscored_rows(tables: list[_Table]) -> dict[Path, dict[str, str]]:
    """Image to its row without scores; with the label that `datasets` would give it if there were no table.

    `datasets` expects the same columns of all splits. A table without labels says that the folders are none.
    """
    files = {path: file for table in tables for file, path in table.images.items()}
    parents = {path: file.rpartition("/")[0].rpartition("/")[2] for path, file in files.items()}
    same_depth = len({file.count("/") for file in files.values()}) == 1
    is_refused = any("label" not in row for table in tables for row in table.rows.values())
    if not same_depth or len(set(parents.values())) < 2 or is_refused:
        return {path: {"file_name": file} for path, file in files.items()}
    return {path: {"file_name": file, "label": parents[path]} for path, file in files.items()}


def _is_scored(row: dict[str, str], name: str) -> bool:
    try:
        return row.get(SCORER_COLUMN) == name and math.isfinite(float(row.get(COLUMN) or "nan"))
    except ValueError:
        return False


def _read_table(table: Path) -> dict[str, dict[str, str]]:
    if not table.exists():
        return {}
    try:
        with table.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if "file_name" not in (reader.fieldnames or []):
                raise UserError(f"{table} has no column file_name; move it away, and a new one is written")
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is damaged ({error}); move it away, and a new one is written") from error
    by_file = {row["file_name"]: row for row in rows}
    if len(by_file) < len(rows):
        raise UserError(f"{table} has several rows of one image; score a copy of the folder without it")
    return by_file


def _score_shards(
    folder: Path,
    shards: list[Path],
    name: str,
    load_scorer: Callable[[str], QualityScorer],
    batch_size: int,
    progress: Progress,
) -> Scored:
    footers = {path: _read_footer(path) for path in shards}
    total = sum(num_rows for _, num_rows in footers.values())
    if not total:
        raise UserError(f"{folder} has parquet files, but not one row")
    scorers = {path: (footers[path][0].metadata or {}).get(SCORER_KEY) for path in shards}
    foreign = [path for path in shards if COLUMN in footers[path][0].names and scorers[path] is None]
    if foreign and not (folder / RECORD).exists():  # that of a generated dataset is its threshold's
        raise UserError(
            f"{foreign[0]} has a column {COLUMN} of another origin; rename it first, so that it is not lost"
        )
    waiting = [path for path in shards if scorers[path] != name.encode()]
    done = known = total - sum(footers[path][1] for path in waiting)
    scorer: Any = load_scorer(name) if waiting else None
    for path in waiting:
        for rows in _score_shard(path, name, scorer, batch_size):
            done += rows
            progress(done, total)
    return Scored(folder, [score for path in shards for score in _read_scores(path)], known)


def _read_scores(path: Path) -> list[float]:
    with path.open("rb") as file:  # pyarrow takes a path for UTF-8 whatever the locale
        return pq.read_table(file, columns=[COLUMN])[COLUMN].to_pylist()


def _read_footer(path: Path) -> tuple[pa.Schema, int]:
    """The schema of a parquet file, and its number of rows."""
    try:
        with path.open("rb") as file:
            metadata = pq.read_metadata(file)
        return metadata.schema.to_arrow_schema(), metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is no parquet file, or damaged: {first_line(error)}") from error


def _score_shard(path: Path, name: str, scorer: QualityScorer, batch_size: int) -> Iterable[int]:
    """Write the shard again with its column, a row group at a time, then rename it. Yields numbers of rows."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        with path.open("rb") as stored, pq.ParquetFile(stored, page_checksum_verification=True) as source:
            schema = _with_column(source.schema_arrow, name)
            with (
                draft.open("wb") as file,
                pq.ParquetWriter(file, schema, write_page_checksum=True, write_page_index=True) as writer,
            ):
                first = 0
                for batch in source.iter_batches(_CHUNK):
                    cells = batch.column("image").to_pylist()
                    labels = [f"row {first + place} of {path.name}" for place in range(len(cells))]
                    images = [read_image(_bytes(cell), label) for cell, label in zip(cells, labels, strict=True)]
                    scores = pa.array(score_images(scorer, images, batch_size), pa.float32())
                    columns = {column: batch.column(column) for column in batch.schema.names} | {COLUMN: scores}
                    writer.write_table(pa.table([columns[column] for column in schema.names], schema=schema))
                    first += len(cells)
                    yield len(cells)
        os.replace(draft, path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot score {path}: {first_line(error)}") from error
    finally:
        draft.unlink(missing_ok=True)


def _bytes(cell: object) -> bytes:
    """Of a cell of an image column, as `datasets` or as others write it; empty where there are none."""
    encoded = cell.get("bytes") if isinstance(cell, dict) else cell
    return encoded if isinstance(encoded, bytes) else b""


def _with_column(schema: pa.Schema, name: str) -> pa.Schema:
    """The schema with the column `quality`, declared to `datasets` too, and the scorer's name."""
    metadata = {**(schema.metadata or {}), SCORER_KEY: name.encode()}
    if b"huggingface" in metadata:
        declared = json.loads(metadata[b"huggingface"])
        if features := declared.get("info", {}).get("features"):  # as `datasets` looks for them
            features[COLUMN] = {"dtype": "float32", "_type": "Value"}
            metadata[b"huggingface"] = json.dumps(declared).encode()
    if COLUMN in schema.names:
        schema = schema.set(schema.get_field_index(COLUMN), pa.field(COLUMN, pa.float32()))
    else:
        schema = schema.append(pa.field(COLUMN, pa.float32()))
    return schema.with_metadata(metadata)


def _read_card(card: Path) -> dict | None:
    """The YAML of a dataset card, None where there is none.

    Raises:
        UserError: it is damaged: `load_dataset` could not read it either.
    """
    try:
        return metadata_load(card) if card.exists() else None
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"the front matter of {card} is damaged: {first_line(error)}") from error


def _declare_column(card: Path, metadata: dict | None) -> None:
    """Add the column to the features that a dataset card lists: `load_dataset` holds to that list."""
    metadata = metadata or {}
    infos = metadata.get("dataset_info")
    infos = infos if isinstance(infos, list) else [infos]  # one for each configuration, where there are several
    listed = [info.get("features") for info in infos if isinstance(info, dict)]
    waiting = [features for features in listed if features and COLUMN not in [feature["name"] for feature in features]]
    for features in waiting:
        features.append({"name": COLUMN, "dtype": "float32"})
    if waiting:
        metadata_save(card, metadata)
