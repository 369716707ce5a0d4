"""Status counts; verification finds whatever is wrong with a dataset."""

import errno
import io
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from stand_in import StandIn, make_settings, read_rows

from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.folder import DatasetFolder
from lbgen_hf.synthesis.generate import generate
from lbgen_hf.synthesis.leases import Leases
from lbgen_hf.synthesis.shard import encode_image
from lbgen_hf.synthesis.verify import Problem, fix, read_status, verify

SHARD_1 = "data/train-00001-of-00006.parquet"


@pytest.fixture
def dataset(finished: Path, tmp_path: Path) -> Path:
    """A finished dataset to damage."""
    return Path(shutil.copytree(finished, tmp_path / "dataset"))


def shard_path(dataset: Path, shard: int) -> Path:
    return dataset / make_settings().plan.shard_name(shard)


def check(dataset: Path) -> list[Problem]:
    return verify(DatasetFolder(dataset))


def repaired(dataset: Path) -> list[dict]:
    fix(DatasetFolder(dataset))
    generate(dataset, make_settings(), StandIn())
    return read_rows(dataset)


def edit(path: Path, change) -> None:
    """Write a shard again with other rows; its metadata stays."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


def test_a_good_dataset_has_no_problem(finished: Path):
    assert check(finished) == []


def test_resampled_and_rejected_images_are_no_problem(tmp_path: Path):
    generate(tmp_path, make_settings(max_resamples=2), StandIn(accept=lambda row: row.id % 2 or row.class_id == 6))
    assert len(read_rows(tmp_path)) < 60
    assert check(tmp_path) == []


def test_a_truncated_shard_is_found_named_and_samples_again(finished: Path, dataset: Path, caplog):
    path = shard_path(dataset, 2)
    os.truncate(path, path.stat().st_size // 2)
    (problem,) = check(dataset)
    assert problem.name == "data/train-00002-of-00006.parquet"
    assert "truncated or corrupt" in problem.what
    generate(dataset, make_settings(), StandIn())
    assert "train-00002-of-00006.parquet is truncated or corrupt" in caplog.text
    assert read_rows(dataset) == read_rows(finished)


def test_a_flipped_byte_is_found_or_harmless(finished: Path, dataset: Path):
    """The footer has statistics and an index that no reader of rows needs, and no checksum of its own."""
    path = shard_path(dataset, 1)
    whole = bytearray(path.read_bytes())
    for position in range(10, len(whole), len(whole) // 12):
        damaged = bytearray(whole)
        damaged[position] ^= 0x40
        path.write_bytes(damaged)
        assert [problem.name for problem in check(dataset)[:1]] == [SHARD_1] or read_rows(dataset) == read_rows(
            finished
        )
    path.write_bytes(whole[:1000] + b"!" + whole[1001:])
    assert repaired(dataset) == read_rows(finished)


def test_an_empty_file_is_found(finished: Path, dataset: Path):
    shard_path(dataset, 0).write_bytes(b"")
    assert repaired(dataset) == read_rows(finished)


def test_a_missing_shard_is_found(dataset: Path):
    shard_path(dataset, 5).unlink()
    assert [str(problem) for problem in check(dataset)] == ["data/train-00005-of-00006.parquet: is missing"]


@pytest.mark.parametrize(
    ("column", "value"), [("label", 7), ("seed", 1), ("index", 9), ("prompt", "x"), ("wnid", "n0"), ("resamples", 11)]
)
def test_a_row_that_is_not_the_plans_is_found(dataset: Path, column: str, value):
    edit(shard_path(dataset, 3), lambda rows: rows[4].update({column: value}))
    (problem,) = check(dataset)
    assert f"image 34 has {column} {value}, the plan says" in problem.what


def test_black_images_are_found(dataset: Path):
    black = encode_image(np.zeros((16, 16, 3), np.uint8), make_settings())
    edit(shard_path(dataset, 3), lambda rows: rows[4]["image"].update(bytes=black))
    assert [problem.what for problem in check(dataset)] == ["image 34 is black"]


def test_images_that_are_there_twice_are_found(dataset: Path):
    image = read_rows(dataset)[7]["image"]["bytes"]
    edit(shard_path(dataset, 3), lambda rows: rows[4]["image"].update(bytes=image))
    assert [problem.what for problem in check(dataset)] == ["image 34 has the pixels of image 7 in shard 0"]


def test_a_file_that_is_no_image_is_found(finished: Path, dataset: Path):
    edit(shard_path(dataset, 3), lambda rows: rows[4]["image"].update(bytes=rows[4]["image"]["bytes"][:50]))
    assert ["image 34 cannot be decoded" in problem.what for problem in check(dataset)] == [True]
    assert repaired(dataset) == read_rows(finished)


def test_a_broken_png_is_found(dataset: Path):
    """Of which Pillow says a `SyntaxError`."""
    encoded = encode_image(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8), make_settings())
    broken = b"!!!!".join(encoded.rsplit(b"IDAT", 1))
    edit(shard_path(dataset, 3), lambda rows: rows[4]["image"].update(bytes=broken))
    assert ["image 34 cannot be decoded" in problem.what for problem in check(dataset)] == [True]
    with pytest.raises(UserError, match="cannot read 'dataset': broken PNG file"):
        DatasetFolder(dataset).image(34)


def test_another_plans_shard_is_found(finished: Path, dataset: Path, tmp_path: Path):
    generate(tmp_path / "other", make_settings(seed=4), StandIn())
    shutil.copy(shard_path(tmp_path / "other", 1), shard_path(dataset, 1))
    assert "was not written by these settings" in check(dataset)[0].what
    assert repaired(dataset) == read_rows(finished)


def test_status_counts_and_extrapolates(dataset: Path):
    for shard in (3, 4, 5):
        shard_path(dataset, shard).unlink()
    now = time.time()
    for shard, age in [(0, 40), (1, 20), (2, 0)]:
        os.utime(shard_path(dataset, shard), (now - age, now - age))
    (dataset / ".lbgen" / "leases" / "worker-t").write_text('{"host": "elsewhere", "pid": 1, "token": "t"}')
    status = read_status(DatasetFolder(dataset))
    assert (status.shards_done, status.num_shards, status.images_done, status.num_images) == (3, 6, 30, 60)
    assert status.workers == 1
    assert status.images_per_second == pytest.approx(0.5, rel=0.01)
    assert status.seconds_left == pytest.approx(60, rel=0.01)


def test_status_of_a_finished_dataset(finished: Path):
    status = read_status(DatasetFolder(finished))
    assert (status.shards_done, status.workers, status.seconds_left) == (6, 0, None)


def test_status_changes_nothing(dataset: Path):
    shard_path(dataset, 1).write_bytes(b"")
    assert read_status(DatasetFolder(dataset)).shards_done == 5
    assert shard_path(dataset, 1).exists()


def test_a_folder_without_dataset_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds no generated dataset"):
        DatasetFolder(tmp_path)


def test_a_stray_shard_is_found_and_left_where_it_is(dataset: Path):
    stray = dataset / "data" / "train-00000-of-00003.parquet"
    shutil.copy(shard_path(dataset, 0), stray)
    problems, deleted = fix(DatasetFolder(dataset))
    assert [str(problem) for problem in problems] == [
        "data/train-00000-of-00003.parquet: is not in the plan, and load_dataset may read it"
    ]
    assert deleted == []
    assert stray.exists()


def test_nothing_is_removed_while_others_write(dataset: Path):
    shard_path(dataset, 0).write_bytes(b"")
    with Leases(dataset, host="another-machine", pid=1) as worker:
        worker.join()
        with pytest.raises(UserError, match="lbgen generate is writing to"):
            fix(DatasetFolder(dataset))
    assert shard_path(dataset, 0).exists()
    assert fix(DatasetFolder(dataset))[1] == ["data/train-00000-of-00006.parquet"]


def test_nobody_writes_while_it_is_fixed(dataset: Path):
    """A shard that was finished after it was found broken would be deleted for nothing."""
    shard_path(dataset, 0).write_bytes(b"")
    refused = []

    def join(done: int, total: int) -> None:
        with Leases(dataset, host="another-machine", pid=1) as worker, pytest.raises(UserError, match="is changing"):
            worker.join()
        refused.append(done)

    fix(DatasetFolder(dataset), join)
    assert len(refused) == 6


def test_a_shard_that_was_missing_is_not_deleted(dataset: Path, tmp_path: Path):
    """It may appear while the others are looked at: a network disk shows it after a while."""
    kept = shard_path(dataset, 0).rename(tmp_path / "kept")
    problems, deleted = fix(DatasetFolder(dataset), lambda done, total: shutil.copy(kept, shard_path(dataset, 0)))
    assert [str(problem) for problem in problems] == ["data/train-00000-of-00006.parquet: is missing"]
    assert deleted == []
    assert shard_path(dataset, 0).exists()


@pytest.mark.parametrize("when", ["open", "read"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
def test_a_shard_that_cannot_be_read_is_not_broken(dataset: Path, monkeypatch, when: str, number: int):
    """The disk, its server or a limit failed: the shard may be whole, and is kept."""
    open_file = LocalFileSystem.open

    def refuse(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    def open_or_fail(files: LocalFileSystem, path: str, mode: str):
        file = open_file(files, path, mode)
        if path.endswith(SHARD_1):
            file.close()
            if when == "open":
                refuse()
            file = io.BytesIO(shard_path(dataset, 1).read_bytes())
            file.read = refuse
        return file

    monkeypatch.setattr(LocalFileSystem, "open", open_or_fail)
    folder = DatasetFolder(dataset)
    for look in (read_status, verify, fix, lambda _: generate(dataset, make_settings(), StandIn())):
        with pytest.raises(UserError, match="cannot read .*" + os.strerror(number)):
            look(folder)
    assert shard_path(dataset, 1).exists()


def test_progress_counts_up_to_all(finished: Path):
    seen = []
    verify(DatasetFolder(finished), lambda *now: seen.append(now))
    assert seen == [(images, 60) for images in range(10, 70, 10)]
