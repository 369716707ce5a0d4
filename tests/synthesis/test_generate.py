"""A stand-in model in, a dataset folder out: whatever the batch, the workers, the thresholds and the folder."""

import dataclasses
import io
import multiprocessing
import os
import resource
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Image, load_dataset
from PIL import Image as PILImage
from stand_in import StandIn, make_settings, read_rows, start_worker

from lbgen_hf.errors import UserError
from lbgen_hf.synthesis.folder import DatasetFolder
from lbgen_hf.synthesis.generate import Place, generate, work_order
from lbgen_hf.synthesis.leases import Leases
from lbgen_hf.synthesis.plan import PRESETS, preset_options


def test_load_dataset_opens_the_folder(finished: Path, tmp_path: Path):
    dataset = load_dataset(str(finished), split="train", cache_dir=str(tmp_path))
    assert len(dataset) == 60
    assert dataset.features["label"] == ClassLabel(names=list(make_settings().classes))
    assert dataset.features["image"] == Image()
    assert dataset[13]["image"].size == (16, 16)
    expected = {"label": 1, "wnid": "n00000001", "prompt": "class 1", "index": 1, "resamples": 0}
    assert {name: dataset[13][name] for name in expected} == expected


def test_images_are_those_that_were_samples(finished: Path):
    settings = make_settings()
    for image_id, line in enumerate(read_rows(finished)):
        row = settings.plan.row(image_id)
        image = np.asarray(PILImage.open(io.BytesIO(line["image"]["bytes"])))
        assert line["seed"] == row.seed
        assert np.array_equal(image, StandIn()([row]).pixels[0])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batches_change_nothing(finished: Path, tmp_path: Path, batch_size: int):
    generate(tmp_path / "out", make_settings(), StandIn(), batch_size=batch_size)
    assert read_rows(tmp_path / "out") == read_rows(finished)


def test_work_order_visits_each_shard_once_and_its_own_first():
    shards = [2, 3, 5, 8, 9]
    for rank in range(3):
        order = list(work_order(shards, rank, 3))
        assert sorted(order) == shards
        assert order[: len(shards[rank::3])] == shards[rank::3]


def test_workers_of_one_launcher_share_the_work(finished: Path, tmp_path: Path):
    out = tmp_path / "out"
    workers = [start_worker(out, make_settings(), StandIn(seconds=0.02), 4, rank, 3) for rank in range(3)]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert read_rows(out) == read_rows(finished)


def test_independent_jobs_share_a_folder_and_sample_nothing_twice(finished: Path, tmp_path: Path):
    out = tmp_path / "out"
    counter = multiprocessing.get_context("fork").Value("i", 0)

    def count(row) -> bool:
        with counter.get_lock():
            counter.value += 1
        return True

    workers = [start_worker(out, make_settings(), StandIn(seconds=0.02, accept=count)) for _ in range(2)]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert read_rows(out) == read_rows(finished)
    assert counter.value == 60


def test_a_finished_dataset_is_left_alone(finished: Path):
    before = {path: path.stat().st_mtime_ns for path in (finished / "data").iterdir()}

    def never(row) -> bool:
        raise AssertionError("drew again")

    generate(finished, make_settings(), StandIn(accept=never))
    assert {path: path.stat().st_mtime_ns for path in (finished / "data").iterdir()} == before


def test_refused_images_are_samples_again_with_the_next_seed(tmp_path: Path):
    generate(
        tmp_path / "out", make_settings(), StandIn(accept=lambda row: row.id % 3 or row.resamples == 2), batch_size=4
    )
    rows = read_rows(tmp_path / "out")
    assert [row["resamples"] for row in rows] == [0 if image_id % 3 else 2 for image_id in range(60)]
    for image_id, line in enumerate(rows):
        row = make_settings().plan.row(image_id)
        assert line["seed"] == (row if image_id % 3 else row.resampled().resampled()).seed


def test_a_class_that_cannot_pass_is_rejected_and_named(tmp_path: Path):
    out = tmp_path / "out"
    settings = make_settings(max_resamples=2)
    calls = []
    accept = lambda row: calls.append(row) or row.class_id != 4  # noqa: E731
    generate(out, settings, StandIn(accept=accept), batch_size=4)
    assert {row["label"] for row in read_rows(out)} == set(range(12)) - {4}
    assert len(calls) == 55 + 5 * 3
    assert "class 4 (5)" in (out / "README.md").read_text()
    calls.clear()
    generate(out, settings, StandIn(accept=accept))
    assert not calls


@pytest.mark.parametrize("images_per_class", [5, 1])
def test_thresholds_that_nothing_passes_end_the_job(tmp_path: Path, images_per_class: int):
    """At once where there are many images, at the end where there are few; never with a dataset of none."""
    settings = make_settings(max_resamples=2, min_quality=4.9, images_per_class=images_per_class)
    calls = []
    sampler = StandIn(accept=lambda row: bool(calls.append(row)), scores=lambda rows: {"quality": [3.0] * len(rows)})
    for _ in range(2):
        with pytest.raises(UserError, match=r"none of the images passed at any of 3 seeds the thresholds \(--min-q"):
            generate(tmp_path / "out", settings, sampler, batch_size=4)
    assert not (tmp_path / "out" / "README.md").exists()
    assert len(calls) <= 2 * 3 * 30


def test_a_shard_that_nothing_passes_is_sampled_again_beside_others(tmp_path: Path):
    """As the last of a killed run, or the first that another worker has: finished shards have images."""
    settings, sampler = make_settings(max_resamples=0, shard_size=30), StandIn(accept=lambda row: row.id < 30)
    dataset = generate(tmp_path / "out", settings, sampler)
    dataset.shard_path(1).unlink()
    generate(tmp_path / "out", settings, sampler)
    assert dataset.rejected_ids() == list(range(30, 60))


def test_a_class_that_cannot_pass_does_not_end_the_job(tmp_path: Path):
    settings = make_settings(max_resamples=1, min_quality=4.9, shard_size=1)
    scores = {"scores": lambda rows: {"quality": [3.0] * len(rows)}}
    dataset = generate(tmp_path / "out", settings, StandIn(accept=lambda row: row.class_id == 11, **scores))
    assert [row["label"] for row in dataset.rows(["label"])] == [11] * 5


def test_without_wordnet_ids_there_is_no_such_column(tmp_path: Path):
    generate(tmp_path / "out", make_settings(wnids=None), StandIn())
    assert "wnid" not in (tmp_path / "out" / "README.md").read_text()
    dataset = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert list(dataset.features) == ["image", "label", "prompt", "index", "seed", "resamples"]
    loader = torch.utils.data.DataLoader(dataset.remove_columns("image"), batch_size=4)
    assert next(iter(loader))["label"].tolist() == [0, 1, 2, 3]


def test_a_dataset_with_a_missing_shard_does_not_load_as_if_it_were_whole(finished: Path, tmp_path: Path):
    """The card tells `load_dataset` how many rows there are."""
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    (copy / make_settings().plan.shard_name(2)).unlink()
    with pytest.raises(Exception, match=r"num_examples|NonMatchingSplits"):
        load_dataset(str(copy), split="train", cache_dir=str(tmp_path / "cache"))


def test_generating_waits_for_nobody_who_changes_the_folder_alone(finished: Path, tmp_path: Path):
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    with Leases(copy, host="another-machine", pid=1) as other:
        other.join_alone()
        with pytest.raises(UserError, match="another process is changing"):
            generate(copy, make_settings(), StandIn())


def test_scores_become_columns(tmp_path: Path):
    settings = make_settings(min_clip_score=0.1, min_quality=1.0)
    sampler = StandIn(scores=lambda rows: {"clip_score": [0.25] * len(rows), "quality": [row.index for row in rows]})
    generate(tmp_path / "out", settings, sampler)
    rows = read_rows(tmp_path / "out")
    assert {row["clip_score"] for row in rows} == {0.25}
    assert [row["quality"] for row in rows] == [row["index"] for row in rows]


@pytest.mark.parametrize("image_format", ["jpeg", "webp", "png"])
def test_formats_and_resolution(tmp_path: Path, image_format: str):
    settings = make_settings(format=image_format, resolution=8, images_per_class=1)
    generate(tmp_path / "out", settings, StandIn())
    image = PILImage.open(io.BytesIO(read_rows(tmp_path / "out")[0]["image"]["bytes"]))
    assert (image.format.lower(), image.size) == (image_format, (8, 8))


def test_row_groups_are_small_enough_to_stream(tmp_path: Path):
    generate(tmp_path / "out", make_settings(images_per_class=30, shard_size=250), StandIn(), batch_size=64)
    with pq.ParquetFile(tmp_path / "out" / "data" / "train-00000-of-00002.parquet") as file:
        assert [file.metadata.row_group(i).num_rows for i in range(3)] == [100, 100, 50]


def test_progress_counts_up_to_all(tmp_path: Path):
    seen = []
    generate(tmp_path / "out", make_settings(), StandIn(), batch_size=4, progress=lambda *now: seen.append(now))
    assert seen[0] == (0, 60)
    assert seen[-1] == (60, 60)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 4}, "seed is 3 there, 4 here"),
        ({"images_per_class": 6}, "images per class is 5 there, 6 here"),
        (
            {"classes": tuple(f"class {i}" for i in [0, 2, 1, *range(3, 12)])},
            "class 1 is 'class 1' there, 'class 2' here",
        ),
        ({"classes": tuple("abc"), "wnids": None}, "the classes differ: class 0 is 'class 0' there, 'a' here"),
        ({"model": "other", "model_digest": "1"}, "the model is stand-in there, other with other weights here"),
        ({"lora": "l", "lora_sha256": "1"}, "the LoRA is None there, l with other weights here"),
        ({"steps": 49, "guidance_scale": 3.0}, "steps is 50 there, 49 here; guidance scale is 2.0 there, 3.0 here"),
    ],
)
def test_another_plan_is_refused_with_the_difference(finished: Path, changes: dict, difference: str):
    with pytest.raises(UserError, match="holds another plan: .*" + difference):
        generate(finished, make_settings(**changes), StandIn())


def test_the_same_weights_elsewhere_are_the_same_model(finished: Path):
    generate(finished, make_settings(model="/another/place"), StandIn())
    assert DatasetFolder(finished).settings.model == "stand-in"


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UserError, match=r"holds something else \(holiday.jpg\)"):
        generate(tmp_path, make_settings(), StandIn())
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="is a file"):
        generate(tmp_path / "out", make_settings(), StandIn())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file is a file"):
        generate(tmp_path / "file" / "out", make_settings(), StandIn())


def test_a_damaged_record_is_refused(tmp_path: Path):
    (tmp_path / "generation.json").write_text('{"settings": ')
    with pytest.raises(UserError, match="is damaged"):
        generate(tmp_path, make_settings(), StandIn())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1"),
        ({"cache_interval": 0}, "--cache-interval must be at least 1"),
        ({"format": "bmp"}, "--format must be one of jpeg, webp, png, got bmp"),
        ({"image_quality": 0}, "--image-quality must be at least 1"),
        ({"resolution": 4}, "--resolution must be at least 8"),
        ({"resolution": 100_000}, "--resolution must be at least 8 and at most 4096"),
        ({"guidance_start": 0.8, "guidance_stop": 0.2}, "--guidance-stop must be at least 0.8"),
        ({"guidance_scale": float("nan")}, "--guidance-scale must be a finite number"),
        ({"min_quality": float("inf")}, "--min-quality must be a finite number"),
        ({"steps": 1001}, "--steps must be at least 1 and at most 1000"),
        ({"images_per_class": 10**12}, "12,000,000,000,000 images are too many"),
        ({"images_per_class": 10**400}, "images are too many"),
        ({"images_per_class": 2.0}, "--images-per-class must be an integer"),
        ({"classes": ("a", 1)}, "classes must be a list of texts"),
        ({"model": None}, "model must be a text"),
        ({"wnids": ("n00000000",)}, "1 wnids for 12 classes"),
        ({"seed": -1}, "--seed must be at least 0"),
    ],
)
def test_bad_settings_are_refused(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        make_settings(**changes)


def test_bad_batch_size_and_preset_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="--batch-size must be at least 1"):
        generate(tmp_path / "out", make_settings(), StandIn(), batch_size=0)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="choose from paper, fast"):
        preset_options("slow")
    assert set(PRESETS["paper"]) <= {field.name for field in dataclasses.fields(make_settings())}


def _fill_the_disk(out: Path, message: multiprocessing.Queue) -> None:
    """Generate where no file may grow over 40 kB: images of 16x16 fit a shard, the last ones, of 256x256, do not."""
    settings = make_settings()
    small, large = StandIn(edge=16), StandIn(edge=256)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    try:
        generate(out, settings, lambda rows: (large if rows[0].id >= 50 else small)(rows), batch_size=5)
    except UserError as error:
        message.put(str(error))


def test_a_full_disk_is_one_clear_error_and_finished_shards_stay(finished: Path, tmp_path: Path):
    context = multiprocessing.get_context("fork")
    message = context.Queue()
    process = context.Process(target=_fill_the_disk, args=(tmp_path / "out", message))
    process.start()
    assert "no space left; finished shards are kept" in message.get(timeout=60)
    process.join(60)
    assert len(list((tmp_path / "out" / "data").iterdir())) == 5
    assert not list((tmp_path / "out" / ".lbgen").glob("*.tmp"))
    generate(tmp_path / "out", make_settings(), StandIn())
    assert read_rows(tmp_path / "out") == read_rows(finished)


def test_an_error_of_the_sampler_keeps_finished_shards(finished: Path, tmp_path: Path):
    def fail(row) -> bool:
        if row.id == 35:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "out", make_settings(), StandIn(accept=fail))
    assert len(read_rows(tmp_path / "out")) == 30
    assert threading.active_count() < 20
    generate(tmp_path / "out", make_settings(), StandIn())
    assert read_rows(tmp_path / "out") == read_rows(finished)


def test_ranks_come_from_the_launcher(monkeypatch: pytest.MonkeyPatch):
    assert Place.from_environment() == Place(0, 1)
    monkeypatch.setitem(os.environ, "RANK", "2")
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "5")
    assert Place.from_environment() == Place(2, 5)
