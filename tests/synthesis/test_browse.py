"""Looking at a dataset class by class, in a folder and on the Hub."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stand_in import StandIn, make_settings

from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.browse import DatasetBrowser, check_repo_id
from lbgen_hf.synthesis.generate import generate


def test_it_shows_the_rows_that_load_dataset_gives(finished) -> None:
    browser = DatasetBrowser.from_folder(finished)
    rows = datasets.load_dataset(str(finished), split="train")
    for class_id in (0, 5, 11):
        expected = [row for row in rows if row["label"] == class_id]
        shown = browser.pictures(class_id, start=1, count=10)
        assert [(s.index, s.seed) for s in shown] == [(row["index"], row["seed"]) for row in expected[1:]]
        for picture, row in zip(shown, expected[1:], strict=True):
            np.testing.assert_array_equal(np.asarray(picture.image), np.asarray(row["image"]))


def test_pictures_that_were_left_out_move_nothing(tmp_path) -> None:
    out = tmp_path / "gated"
    generate(out, make_settings(max_redraws=0), StandIn(accept=lambda row: row.id % 3 != 1), batch_size=10)
    browser = DatasetBrowser.from_folder(out)
    rows = datasets.load_dataset(str(out), split="train")
    for class_id in range(12):
        expected = [row["seed"] for row in rows if row["label"] == class_id]
        assert [shown.seed for shown in browser.pictures(class_id, count=5)] == expected


@pytest.mark.parametrize("content", ["", "{}", '{"settings": {"classes": ["a"]}}', "[1]"])
def test_a_folder_that_is_no_dataset_is_one_line(tmp_path, content: str) -> None:
    (tmp_path / "generation.json").write_text(content)
    with pytest.raises(UserError):
        DatasetBrowser.from_folder(tmp_path)


def test_a_strangers_row_cannot_name_a_file_of_ours(finished, tmp_path) -> None:
    out = tmp_path / "evil"
    (out / "data").mkdir(parents=True)
    (out / "generation.json").write_bytes((finished / "generation.json").read_bytes())
    for shard in (finished / "data").iterdir():
        table = pq.read_table(shard)
        images = [{"bytes": None, "path": "/etc/passwd"}] * len(table)
        images = pa.array(images, table.schema.field("image").type)
        pq.write_table(table.set_column(0, table.schema.field("image"), images), out / "data" / shard.name)
    with pytest.raises(UserError, match="cannot read"):
        DatasetBrowser.from_folder(out).pictures(0)


@pytest.mark.parametrize(
    "repo_id", ["", "x", "a/b/c", "../x", "a/../b", "/etc/passwd", "a/b@main", "http://a/b", "a\\b/c"]
)
def test_only_user_slash_name_is_a_repo(repo_id: str) -> None:
    with pytest.raises(UserError):
        check_repo_id(repo_id)
