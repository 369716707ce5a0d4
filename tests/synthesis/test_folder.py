"""`DatasetFolder`: what it says of a dataset is what `load_dataset` gives and what the plan says."""

import dataclasses
import errno
import io
import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stand_in import StandIn, make_settings, start_worker

import lbgen_hf
from lbgen_hf.errors import UserError
from lbgen_hf.hub import check_repo_id
from lbgen_hf.rewards.quality import load_quality_scorer
from lbgen_hf.score import score_folder
from lbgen_hf.synthesis.create import create_folder
from lbgen_hf.synthesis.folder import DatasetFolder
from lbgen_hf.synthesis.generate import generate
from lbgen_hf.synthesis.plan import PRESETS
from lbgen_hf.synthesis.publish import export_webdataset, prepare_to_publish
from lbgen_hf.synthesis.sample import Job
from lbgen_hf.synthesis.verify import read_status, verify


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A finished dataset to change."""
    return Path(shutil.copytree(finished, tmp_path / "dataset"))


@pytest.fixture(scope="module")
def rejecting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset without every third image."""
    out = tmp_path_factory.mktemp("rejecting") / "dataset"
    generate(out, make_settings(max_resamples=0), StandIn(accept=lambda row: row.id % 3 != 1), batch_size=10)
    return out


def test_it_is_a_public_name(finished: Path):
    dataset = lbgen_hf.DatasetFolder(str(finished))
    assert dataset.settings == make_settings()
    assert dataset.plan == make_settings().plan
    assert (dataset.name, dataset.path) == ("dataset", finished)


def test_a_folder_whose_name_is_no_text(tmp_path: Path):
    """Such as any name that is not ASCII, in the C locale; Python gives it as surrogates, which UTF-8 does not have."""
    out = tmp_path / os.fsdecode(b"caf\xe9")
    settings = make_settings(model=str(out), lora=str(out))
    generate(out, settings, StandIn(edge=32), batch_size=20)
    dataset = DatasetFolder(out)
    assert dataset.settings == settings
    assert verify(dataset) == []
    assert dataset.name == "caf\N{REPLACEMENT CHARACTER}"
    scored = score_folder(out, "lbgen-tiny", load_quality_scorer)
    assert len(scored.scores) == 60


def score(out: Path, progress=lambda done, total: None) -> None:
    score_folder(out, "brightness", lambda _: lambda images: images.mean((1, 2, 3)), progress=progress)


def stop(done: int, total: int) -> None:
    if done > 10:  # in the second shard
        raise KeyboardInterrupt


@pytest.mark.parametrize("least", [None, 1.0])
@pytest.mark.parametrize("how", ["a shard is made again", "scoring is interrupted"])
def test_scores_of_some_shards_are_not_given_to_others(tmp_path: Path, how: str, least: float | None):
    """`load_dataset` would fail, or fill in nulls; with a threshold, it would mix two scorers' numbers."""
    settings = make_settings(min_quality=least, quality_scorer=None if least is None else "another")
    sampler = StandIn(edge=32, scores=lambda rows: {} if least is None else {"quality": [1.0] * len(rows)})
    dataset = generate(tmp_path / "out", settings, sampler)
    if how == "scoring is interrupted":
        with pytest.raises(KeyboardInterrupt):
            score(dataset.path, stop)
    else:
        score(dataset.path)
        dataset.shard_path(2).unlink()
    for use in (
        lambda: generate(dataset.path, settings, sampler),
        lambda: export_webdataset(dataset, tmp_path / "tars"),
        lambda: prepare_to_publish(dataset, "user/name"),
    ):
        with pytest.raises(UserError, match="run the same lbgen score again"):
            use()
    score(dataset.path)
    generate(dataset.path, settings, sampler)
    assert len(export_webdataset(dataset, tmp_path / "tars")) == 6
    loaded = datasets.load_dataset(str(dataset.path), split="train", cache_dir=str(tmp_path / "cache"))
    assert all(0.4 < quality < 0.6 for quality in loaded["quality"])


def test_rows_are_those_that_load_dataset_gives(rejecting: Path, tmp_path: Path):
    rows = list(DatasetFolder(rejecting).rows())
    loaded = datasets.load_dataset(str(rejecting), split="train", cache_dir=str(tmp_path))
    assert [row["id"] for row in rows] == [image_id for image_id in range(60) if image_id % 3 != 1]
    for row, line in zip(rows, loaded, strict=True):
        np.testing.assert_array_equal(np.asarray(row.pop("image")), np.asarray(line.pop("image")))
        assert {name: value for name, value in row.items() if name != "id"} == line
    assert list(next(DatasetFolder(rejecting).rows(["seed"]))) == ["id", "seed"]


def test_rows_of_an_unfinished_dataset_are_those_that_are_there(copy: Path):
    dataset = DatasetFolder(copy)
    dataset.shard_path(2).unlink()
    assert [row["id"] for row in dataset.rows(["label"])] == [*range(20), *range(30, 60)]
    assert dataset.unfinished_shards() == {2: ""}
    with pytest.raises(UserError, match=r"train-00002-of-00006\.parquet is missing"):
        dataset.row(25)


def test_a_dataset_that_lost_its_data_is_one_without_shards(copy: Path):
    shutil.rmtree(copy / "data")
    dataset = DatasetFolder(copy)
    assert (read_status(dataset).shards_done, dataset.num_images_written()) == (0, 0)
    assert len(verify(dataset)) == dataset.plan.num_shards
    assert list(dataset.rows()) == []
    with pytest.raises(UserError, match="6 of 6 shards are missing or broken"):
        dataset.require_complete()
    generate(copy, make_settings(), StandIn())
    assert verify(dataset) == []


def test_rejected_images_move_nothing(rejecting: Path, tmp_path: Path):
    dataset = DatasetFolder(rejecting)
    loaded = datasets.load_dataset(str(rejecting), split="train", cache_dir=str(tmp_path))
    assert dataset.rejected_ids() == list(range(1, 60, 3))
    assert dataset.image(1) is None
    for class_id in range(12):
        expected = [row["seed"] for row in loaded if row["label"] == class_id]
        assert [shown.seed for shown in dataset.images_of_class(class_id, count=5)] == expected


def test_images_of_a_class(finished: Path, tmp_path: Path):
    dataset = DatasetFolder(finished)
    loaded = datasets.load_dataset(str(finished), split="train", cache_dir=str(tmp_path))
    for class_id in (0, 5, 11):
        expected = [row for row in loaded if row["label"] == class_id]
        shown = dataset.images_of_class(class_id, start=1, count=10)
        assert [(image.index, image.seed) for image in shown] == [(row["index"], row["seed"]) for row in expected[1:]]
        for image, row in zip(shown, expected[1:], strict=True):
            np.testing.assert_array_equal(np.asarray(image.image), np.asarray(row["image"]))


@pytest.mark.parametrize("image_id", [-1, 60])
def test_an_id_outside_the_plan_is_refused(finished: Path, image_id: int):
    with pytest.raises(UserError, match=r"its ids are 0\.\.59"):
        DatasetFolder(finished).image(image_id)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[1]",
        b"null",
        b"\xff\xfe",
        b'{"settings": ',
        b'{"settings": []}',
        b'{"settings": {"classes": ["a"]}}',
        b'{"settings": {"model": "m", "model_digest": "0", "classes": "ab", "images_per_class": 1}}',
        b'{"settings": {"model": "m", "model_digest": "0", "classes": [1], "images_per_class": 1}}',
        b'{"settings": {"model": "m", "model_digest": "0", "classes": ["a"], "images_per_class": 1, "steps": NaN}}',
        b'{"settings": {"model": "m", "model_digest": "0", "classes": ["a"], "images_per_class": 1e99}}',
        b'{"settings": {"model": "m", "model_digest": "0", "classes": ["a"], "images_per_class": 1, "new": 1}}',
        b'{"settings": {"model": "m", "model_digest": "0", "classes": ["a"], "images_per_class": 1}, "versions": 1}',
    ],
)
def test_a_damaged_record_is_one_line(tmp_path: Path, content: bytes):
    (tmp_path / "generation.json").write_bytes(content)
    with pytest.raises(UserError, match=r"the generation\.json of .* is damaged") as error:
        DatasetFolder(tmp_path)
    assert "\n" not in str(error.value)


def refuse_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("has_hard_links", [True, False])
def test_two_different_jobs_cannot_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_hard_links: bool
):
    """Whoever is first has it, also where both start at once."""
    if not has_hard_links:
        refuse_hard_links(monkeypatch)
    workers = [start_worker(tmp_path / "out", make_settings(seed=seed), StandIn(seconds=0.02)) for seed in range(4)]
    for worker in workers:
        worker.join(60)
    assert sorted(worker.exitcode for worker in workers) == [0, 1, 1, 1]
    assert len(list(DatasetFolder(tmp_path / "out").rows())) == 60


def test_without_hard_links_too_the_record_is_whole_once_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    record = tmp_path / "out" / "generation.json"

    def watched_open(file, mode="r", *args, **options):
        assert file != record or mode.startswith("r")
        return open(file, mode, *args, **options)

    refuse_hard_links(monkeypatch)
    monkeypatch.setattr(io, "open", watched_open)
    assert create_folder(tmp_path / "out", make_settings()).settings == make_settings()
    create_folder(tmp_path / "out", make_settings())  # another worker
    with pytest.raises(UserError, match="seed"):
        create_folder(tmp_path / "out", make_settings(seed=1))
    assert not [path for path in (tmp_path / "out" / ".lbgen").rglob("*") if path.is_file()]


def test_a_folder_with_a_stray_shard_is_refused(copy: Path):
    stray = copy / "data" / "train-00000-of-00003.parquet"
    shutil.copy(DatasetFolder(copy).shard_path(0), stray)
    with pytest.raises(UserError, match=r"holds data/train-00000-of-00003\.parquet, which is not in its plan"):
        generate(copy, make_settings(), StandIn())
    with pytest.raises(UserError, match="which is not in its plan"):
        DatasetFolder(copy).require_complete()


def test_a_folder_with_data_of_the_user_is_refused_and_left_as_it_is(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat.jpg").touch()
    with pytest.raises(UserError, match=r"holds something else \(data/cat\.jpg\)"):
        generate(tmp_path, make_settings(), StandIn())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cat.jpg", "data"]


def test_a_strangers_row_cannot_name_a_file_of_ours(copy: Path):
    for shard in (copy / "data").iterdir():
        table = pq.read_table(shard)
        images = [{"bytes": None, "path": "/etc/passwd"}] * len(table)
        images = pa.array(images, table.schema.field("image").type)
        pq.write_table(table.set_column(0, table.schema.field("image"), images), shard)
    with pytest.raises(UserError, match="cannot read"):
        DatasetFolder(copy).images_of_class(0)


@pytest.mark.parametrize(
    "repo_id", ["", "x", "a/b/c", "../x", "a/../b", "/etc/passwd", "a/b@main", "http://a/b", "a\\b/c"]
)
def test_only_user_slash_name_is_a_repo(repo_id: str):
    with pytest.raises(UserError):
        check_repo_id(repo_id)
    with pytest.raises(UserError):
        DatasetFolder(repo_id)


def test_from_hub_never_opens_a_folder(finished: Path):
    with pytest.raises(UserError, match="is not the name of a dataset on the Hub"):
        DatasetFolder.from_hub(str(finished))


@pytest.mark.parametrize("preset", [*PRESETS, "everything"])
def test_a_row_is_generated_again(sd_folder: Path, lora_folder: Path, tmp_path: Path, preset: str):
    """What the card says, for every preset; and with all that changes an image at once."""
    everything = {"steps": 4, "cache_interval": 2, "guidance_start": 0.25, "resolution": 32, "scheduler": "ddim"}
    options = {"images_per_class": 2, "format": "png", **PRESETS.get(preset, everything)}
    job = Job(str(sd_folder), str(lora_folder) if preset == "everything" else None, device="cpu", options=options)
    dataset = generate(tmp_path / "out", *job.prepare(), batch_size=8)
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    for row in (next(dataset.rows()), loaded[5]):
        again = dataset.regenerate(row, device="cpu")
        assert again.size == row["image"].size
        assert np.abs(np.asarray(again).astype(int) - np.asarray(row["image"])).max() <= 2
        assert np.abs(np.asarray(again).astype(int) - np.asarray(loaded[3]["image"])).max() > 2


def test_a_row_is_not_generated_by_other_weights(sd_folder: Path, tmp_path: Path):
    job = Job(str(sd_folder), device="cpu", options={"images_per_class": 1, "steps": 1})
    dataset = generate(tmp_path / "out", *job.prepare())
    record = json.loads((tmp_path / "out" / "generation.json").read_text())
    record["settings"] = dataclasses.replace(dataset.settings, model_digest="0").as_json()
    (tmp_path / "out" / "generation.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="the weights are not those of the plan"):
        DatasetFolder(tmp_path / "out").regenerate({"label": 0, "seed": 1})
