"""WebDataset tars of a finished dataset, for those who train that way."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.settings import read_settings
from lbgen_hf.synthesis.shard import explain_no_space
from lbgen_hf.synthesis.worker import require_complete


def export_webdataset(out: Path, target: Path, progress: Callable[[int], None] = lambda num_shards: None) -> list[Path]:
    """Write one tar a shard: for each image `<id>.jpg` (or webp, png), `<id>.cls`, `<id>.json` with the other columns.

    Args:
        out: the dataset folder, complete.
        target: the folder for the tars; those already there are kept, so that an interrupted export goes on.
        progress: told after each shard how many are done.

    Returns:
        The tars.

    Raises:
        UserError: `out` is not complete, `target` holds something else, or the disk is full.
    """
    settings = read_settings(out)
    plan = settings.plan
    require_complete(out, settings)
    if target.exists() and (strangers := [x.name for x in target.iterdir() if not x.name.startswith("train-")]):
        raise UserError(f"{target} holds something else ({strangers[0]}); give an empty folder")
    tars = []
    with explain_no_space(target):
        target.mkdir(parents=True, exist_ok=True)
        for shard in range(plan.num_shards):
            tar = target / f"train-{shard:05d}.tar"
            if not tar.exists():
                draft = tar.with_suffix(".tmp")
                _write_tar(plan.shard_path(out, shard), draft, shard * plan.shard_size)
                draft.rename(tar)
            tars.append(tar)
            progress(shard + 1)
    return tars


def _write_tar(shard: Path, tar: Path, first_id: int) -> None:
    with pq.ParquetFile(shard) as file, tarfile.open(tar, "w") as archive:
        number = first_id
        for group in range(file.num_row_groups):
            for line in file.read_row_group(group).to_pylist():
                image = line.pop("image")
                _add(archive, f"{number:08d}{Path(image['path']).suffix}", image["bytes"])
                _add(archive, f"{number:08d}.cls", str(line["label"]).encode())
                _add(archive, f"{number:08d}.json", json.dumps(line, ensure_ascii=False).encode())
                number += 1


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
