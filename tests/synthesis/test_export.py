"""Tars that `webdataset` and `load_dataset("webdataset")` read."""

import dataclasses
import io
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm.data
import webdataset
from datasets import load_dataset
from PIL import Image
from stand_in import StandIn, make_settings, read_rows

from lbgen_hf.errors import UserError
from lbgen_hf.files import locked_from_outside
from lbgen_hf.synthesis.folder import DatasetFolder
from lbgen_hf.synthesis.generate import generate
from lbgen_hf.synthesis.publish import export_webdataset


@pytest.fixture(scope="module")
def tars(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return export_webdataset(DatasetFolder(finished), tmp_path_factory.mktemp("tars"))


def test_webdataset_reads_the_tars(finished: Path, tars: list[Path]):
    samples = list(webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False).decode("rgb8"))
    rows = read_rows(finished)
    assert [sample["cls"] for sample in samples] == [row["label"] for row in rows]
    assert [sample["json"]["seed"] for sample in samples] == [row["seed"] for row in rows]
    image = np.asarray(Image.open(io.BytesIO(rows[0]["image"]["bytes"])))
    assert np.array_equal(samples[0]["png"], image)


def test_load_dataset_reads_the_tars(finished: Path, tars: list[Path], tmp_path: Path):
    files = [str(tar) for tar in tars]
    dataset = load_dataset("webdataset", data_files={"train": files}, split="train", cache_dir=str(tmp_path))
    rows = read_rows(finished)
    assert [line["cls"] for line in dataset] == [row["label"] for row in rows]
    assert dataset[7]["png"].size == (16, 16)
    assert dataset[7]["json"]["prompt"] == "class 7"


def test_an_interrupted_export_resumes(finished: Path, tars: list[Path], tmp_path: Path):
    content = [tar.read_bytes() for tar in tars]
    shutil.copy(tars[0].parent / ".exported.json", tmp_path)
    (tmp_path / tars[0].name).write_bytes(content[0])
    (tmp_path / ".writing").mkdir()
    (tmp_path / ".writing" / tars[1].name).write_bytes(content[1][:100])
    again = export_webdataset(DatasetFolder(finished), tmp_path)
    assert [tar.read_bytes() for tar in again] == content
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in tars[0].parent.iterdir())


def _export_and_die(dataset: Path, target: Path, name: str) -> None:
    """Export, and end as a killed process does, just before the file `name` is in place."""
    replace = os.replace
    os.replace = lambda source, place: os._exit(9) if Path(place).name == name else replace(source, place)
    export_webdataset(DatasetFolder(dataset), target)


@pytest.mark.parametrize("name", [".exported.json", "train-00001.tar", "classes.txt", "_info.json"])
def test_an_export_killed_at_any_file_resumes(finished: Path, tars: list[Path], tmp_path: Path, name: str):
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_export_and_die, args=(finished, tmp_path, name))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    export_webdataset(DatasetFolder(finished), tmp_path)
    made, expected = (
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (tmp_path, tars[0].parent)
    )
    assert made == expected


def test_a_folder_that_is_exported_to_is_not_exported_to_by_another(finished: Path, tmp_path: Path):
    with locked_from_outside(tmp_path), pytest.raises(UserError, match="another process is writing to"):
        export_webdataset(DatasetFolder(finished), tmp_path)


def test_each_footer_is_read_once_before_the_first_tar(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read, look = [], DatasetFolder.footer
    monkeypatch.setattr(DatasetFolder, "footer", lambda dataset, shard: read.append(shard) or look(dataset, shard))
    export_webdataset(DatasetFolder(finished), tmp_path)
    assert read == [0, 1, 2, 3, 4, 5]


def test_tars_of_another_dataset_are_refused(tars: list[Path], tmp_path: Path):
    other = dataclasses.replace(make_settings(), seed=make_settings().seed + 1)
    generate(tmp_path / "other", other, StandIn())
    with pytest.raises(UserError, match="holds the tars of another dataset"):
        export_webdataset(DatasetFolder(tmp_path / "other"), tars[0].parent)


def test_an_unfinished_dataset_and_a_strange_folder_are_refused(finished: Path, tmp_path: Path):
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "file").touch()
    with pytest.raises(UserError, match="holds something else"):
        export_webdataset(DatasetFolder(finished), tmp_path / "strange")
    generate(tmp_path / "out", make_settings(), StandIn())
    next((tmp_path / "out" / "data").iterdir()).unlink()
    with pytest.raises(UserError, match="is not complete"):
        export_webdataset(DatasetFolder(tmp_path / "out"), tmp_path / "tars")


def test_timm_reads_the_tars(finished: Path, tars: list[Path]):
    folder = tars[0].parent
    options = {"root": str(folder), "split": "train", "is_training": False, "batch_size": 1}
    dataset = timm.data.create_dataset("wds/", **options)
    rows = read_rows(finished)
    assert len(dataset) == len(rows)
    for (image, label), row in zip(dataset, rows, strict=True):
        assert label == row["label"]
        np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))))
    assert json.loads((folder / "_info.json").read_text())["class_names"] == [f"class {i}" for i in range(12)]
    assert (folder / "classes.txt").read_text().splitlines() == [f"class {i}" for i in range(12)]


def test_ids_are_the_plans_also_where_images_were_rejected(tmp_path: Path):
    dataset = generate(tmp_path / "out", make_settings(max_resamples=0), StandIn(accept=lambda row: row.id % 3 != 1))
    tars = export_webdataset(dataset, tmp_path / "tars")
    samples = webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False)
    assert [int(sample["__key__"]) for sample in samples] == [i for i in range(60) if i % 3 != 1]
    assert json.loads((tmp_path / "tars" / "_info.json").read_text())["splits"]["train"]["num_samples"] == 40


def test_a_damaged_page_is_not_exported(finished: Path, tmp_path: Path):
    dataset = DatasetFolder(Path(shutil.copytree(finished, tmp_path / "copy")))
    path = dataset.shard_path(1)
    whole = bytearray(path.read_bytes())
    whole[1000] ^= 1
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"CRC|checksum|corrupt"):
        export_webdataset(dataset, tmp_path / "tars")
    assert [path.name for path in (tmp_path / "tars").glob("*.tar")] == ["train-00000.tar"]
