"""Shards: parquet files of encoded images, renamed into place once written, so that one that is there is whole."""

import contextlib
import errno
import io
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.plan import MAX_RESOLUTION, Row, Settings

# Work in progress (unfinished shards, leases): beside the data, so that a rename is atomic; never published.
WORK_FOLDER = ".lbgen"
# Streaming reads a row group at a time.
ROW_GROUP_SIZE = 100
_METADATA_KEY = b"lbgen"
# Whose the column `quality` is, where `lbgen score` wrote it.
SCORER_KEY = b"lbgen.quality_scorer"
_FORMATS = ("JPEG", "PNG", "WEBP")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def shard_features(settings: Settings) -> datasets.Features:
    """The columns; `load_dataset` reads them from any shard."""
    columns = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(settings.classes)),
        **({"wnid": datasets.Value("string")} if settings.wnids else {}),
        "prompt": datasets.Value("string"),
        "index": datasets.Value("int64"),
        "seed": datasets.Value("int64"),
        "resamples": datasets.Value("int64"),
    }
    if settings.min_clip_score is not None:
        columns["clip_score"] = datasets.Value("float32")
    if settings.min_quality is not None:
        columns["quality"] = datasets.Value("float32")
    return datasets.Features(columns)


def encode_image(pixels: np.ndarray, settings: Settings) -> bytes:
    """(H, W, 3) uint8 to the bytes of an image file, resized with antialiasing where the settings ask for it."""
    image = Image.fromarray(pixels)
    if settings.resolution and image.size != (settings.resolution, settings.resolution):
        image = image.resize((settings.resolution, settings.resolution), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if settings.format == "png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, settings.format.upper(), quality=settings.image_quality)
    return buffer.getvalue()


def decode_image(encoded: bytes) -> Image.Image:
    """The bytes of an image file to an RGB image.

    Raises:
        ValueError, OSError: they are no JPEG, PNG or WebP file, or one larger than any of ours.
    """
    image = Image.open(io.BytesIO(encoded), formats=_FORMATS)
    if max(image.size) > MAX_RESOLUTION:
        raise ValueError(f"an image of {image.width}x{image.height} is too large to show")
    return image.convert("RGB")


def encode_row(row: Row, pixels: np.ndarray, scores: dict[str, float], settings: Settings) -> dict[str, Any]:
    """One line of a shard: the image's file and what the plan says of it."""
    suffix = "jpg" if settings.format == "jpeg" else settings.format
    name = f"{settings.wnids[row.class_id] if settings.wnids else row.class_id}_{row.index:05d}.{suffix}"
    image = {"bytes": encode_image(pixels, settings), "path": name}
    return {"image": image, **planned_columns(row, settings), "resamples": row.resamples, **scores}


def planned_columns(row: Row, settings: Settings) -> dict[str, Any]:
    """What the plan says of a row."""
    return {
        "label": row.class_id,
        **({"wnid": settings.wnids[row.class_id]} if settings.wnids else {}),
        "prompt": settings.classes[row.class_id],
        "index": row.index,
        "seed": row.seed,
    }


def write_shard(path: Path, rows: Sequence[dict[str, Any]], rejected: Sequence[int], settings: Settings) -> None:
    """Write a shard beside its place and rename it there, after it has reached the disk.

    Args:
        path: the final name.
        rows: in the order of their ids.
        rejected: ids of the images that passed no threshold; recorded, so that the shard still counts as whole.
        settings: of the dataset.

    Raises:
        UserError: the disk is full or cannot be written. Finished shards are untouched, and nothing half-written stays.
    """
    schema = shard_features(settings).arrow_schema
    record = json.dumps({"fingerprint": settings.fingerprint, "rejected": list(rejected)}).encode()
    schema = schema.with_metadata({**schema.metadata, _METADATA_KEY: record})
    draft = path.parent.parent / WORK_FOLDER / f"{path.name}.{uuid.uuid4().hex}.tmp"
    with explain_no_space(draft.parent):
        try:
            with draft.open("wb") as file:
                with pq.ParquetWriter(file, schema, write_page_checksum=True, write_page_index=True) as writer:
                    for start in range(0, len(rows), ROW_GROUP_SIZE):
                        writer.write_table(pa.Table.from_pylist(rows[start : start + ROW_GROUP_SIZE], schema))
                file.flush()
                os.fsync(file.fileno())
            draft.rename(path)
        finally:
            draft.unlink(missing_ok=True)


@contextlib.contextmanager
def explain_no_space(folder: Path) -> Iterator[None]:
    """Say in one line that the disk is full or cannot be written.

    Raises:
        UserError: in place of the `OSError`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            advice = "no space left; finished shards are kept: free some, and run the same command again"
        else:
            advice = f"{error.strerror or error}; finished shards are kept"
        raise UserError(f"cannot write in {folder}: {advice}") from error


class Footer(NamedTuple):
    """What a shard's footer tells without a look at its rows."""

    num_rows: int
    num_bytes: int
    rejected: list[int]
    columns: tuple[str, ...]
    scored_by: str | None  # by `lbgen score`


def read_footer(metadata: pq.FileMetaData, name: str, expected: range, fingerprint: str) -> Footer:
    """Check a finished shard by its footer alone (fast: a truncated file has none).

    Args:
        metadata: the footer.
        name: of the shard, for messages.
        expected: the ids that the plan puts there.
        fingerprint: of the settings.

    Raises:
        ValueError: it is no shard of these settings, or has a wrong number of rows.
    """
    try:
        record = json.loads((metadata.metadata or {}).get(_METADATA_KEY, b"{}"))
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.get("fingerprint") != fingerprint:
        raise ValueError(f"{name} was not written by these settings")
    rejected = record.get("rejected")
    if not isinstance(rejected, list) or not all(image_id in expected for image_id in rejected):
        raise ValueError(f"{name} is corrupt: the ids that it rejected are not its own")
    if metadata.num_rows + len(rejected) != len(expected):
        raise ValueError(f"{name} has {metadata.num_rows} rows, {len(expected) - len(rejected)} expected")
    num_bytes = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    columns = tuple(metadata.schema.to_arrow_schema().names)
    scored_by = metadata.metadata.get(SCORER_KEY, b"").decode(errors="replace") or None
    return Footer(metadata.num_rows, num_bytes, rejected, columns, scored_by)
