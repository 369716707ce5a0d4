"""Shards: parquet files of encoded pictures, renamed into place once written, so that one that is there is whole."""

import contextlib
import errno
import io
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.plan import Row
from lbgen_hf.synthesis.settings import WORK_FOLDER, Settings

# Streaming reads a row group at a time.
ROW_GROUP_SIZE = 100
_METADATA_KEY = b"lbgen"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def shard_features(settings: Settings) -> datasets.Features:
    """The columns; `load_dataset` reads them from any shard."""
    columns = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(settings.classes)),
        "wnid": datasets.Value("string"),
        "prompt": datasets.Value("string"),
        "index": datasets.Value("int64"),
        "seed": datasets.Value("int64"),
        "redraws": datasets.Value("int64"),
    }
    if settings.min_clip_score is not None:
        columns["clip_score"] = datasets.Value("float32")
    if settings.min_quality is not None:
        columns["quality"] = datasets.Value("float32")
    return datasets.Features(columns)


def encode_picture(picture: np.ndarray, settings: Settings) -> bytes:
    """(H, W, 3) uint8 to the bytes of an image file, resized with antialiasing where the settings ask for it."""
    image = Image.fromarray(picture)
    if settings.resolution and image.size != (settings.resolution, settings.resolution):
        image = image.resize((settings.resolution, settings.resolution), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if settings.format == "png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, settings.format.upper(), quality=settings.quality)
    return buffer.getvalue()


def encode_row(row: Row, picture: np.ndarray, scores: dict[str, float], settings: Settings) -> dict[str, Any]:
    """One line of a shard: the picture's file and what the plan says of it."""
    wnid = settings.wnids[row.class_id] if settings.wnids else None
    name = f"{wnid or row.class_id}_{row.index:05d}.{'jpg' if settings.format == 'jpeg' else settings.format}"
    return {
        "image": {"bytes": encode_picture(picture, settings), "path": name},
        "label": row.class_id,
        "wnid": wnid,
        "prompt": settings.classes[row.class_id],
        "index": row.index,
        "seed": row.seed,
        "redraws": row.redraws,
        **scores,
    }


def write_shard(path: Path, rows: Sequence[dict[str, Any]], left_out: Sequence[int], settings: Settings) -> None:
    """Write a shard beside its place and rename it there, after it has reached the disk.

    Args:
        path: the final name.
        rows: in the order of their ids.
        left_out: ids of the pictures that passed no gate; recorded, so that the shard still counts as whole.

    Raises:
        UserError: the disk is full or cannot be written. Finished shards are untouched, and nothing half-written stays.
    """
    schema = shard_features(settings).arrow_schema
    record = json.dumps({"fingerprint": settings.fingerprint, "left_out": list(left_out)}).encode()
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


def read_left_out(path: Path, expected_rows: int, fingerprint: str) -> list[int]:
    """Check a finished shard by its footer alone (fast: a truncated file has none), and read which ids it left out.

    Raises:
        ValueError: the file is truncated, not a shard of these settings, or has a wrong number of rows.
        FileNotFoundError: there is no such file.
    """
    try:
        footer = pq.read_metadata(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path.name} is truncated or corrupt: {error}") from None
    record = json.loads((footer.metadata or {}).get(_METADATA_KEY, b"{}"))
    if record.get("fingerprint") != fingerprint:
        raise ValueError(f"{path.name} was not written by these settings")
    if footer.num_rows + len(record["left_out"]) != expected_rows:
        raise ValueError(f"{path.name} has {footer.num_rows} rows, {expected_rows - len(record['left_out'])} expected")
    return record["left_out"]


def is_done(path: Path, expected_rows: int, fingerprint: str) -> bool:
    """Whether the finished shard is there and its footer is right."""
    try:
        read_left_out(path, expected_rows, fingerprint)
    except (ValueError, FileNotFoundError):
        return False
    return True
