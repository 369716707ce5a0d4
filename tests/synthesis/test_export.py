"""Tars that `webdataset` and `load_dataset("webdataset")` read."""

import io
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image
from stand_in import StandIn, make_settings, read_rows

from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.folder import DatasetFolder
from lbgen_hf.synthesis.generate import generate
from lbgen_hf.synthesis.publish import export_webdataset


@pytest.fixture(scope="module")
def tars(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return export_webdataset(DatasetFolder(finished), tmp_path_factory.mktemp("tars"))


def test_webdataset_reads_the_tars(finished: Path, tars: list[Path]):
    webdataset = pytest.importorskip("webdataset")
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
    (tmp_path / tars[0].name).write_bytes(content[0])
    (tmp_path / "train-00001.tmp").write_bytes(content[1][:100])
    again = export_webdataset(DatasetFolder(finished), tmp_path)
    assert [tar.read_bytes() for tar in again] == content
    assert not list(tmp_path.glob("*.tmp"))


def test_an_unfinished_dataset_and_a_strange_folder_are_refused(finished: Path, tmp_path: Path):
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "file").touch()
    with pytest.raises(UserError, match="holds something else"):
        export_webdataset(DatasetFolder(finished), tmp_path / "strange")
    generate(tmp_path / "out", make_settings(), StandIn())
    next((tmp_path / "out" / "data").iterdir()).unlink()
    with pytest.raises(UserError, match="is not complete"):
        export_webdataset(DatasetFolder(tmp_path / "out"), tmp_path / "tars")
