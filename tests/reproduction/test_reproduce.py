"""`lbgen reproduce` with tiny settings: the report, resumption, and errors of one line."""

import dataclasses
import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lbgen_hf.biaslab import MODELS
from lbgen_hf.biaslab.measure import judge_images, measure, sample_images
from lbgen_hf.biaslab.scenes import CLASSES, SHAPE_NAMES
from lbgen_hf.class_names import load_class_names
from lbgen_hf.cli import main
from lbgen_hf.errors import UserError
from lbgen_hf.evaluation import benchmarks, biaslab
from lbgen_hf.evaluation.benchmarks import Benchmark, parse_benchmarks
from lbgen_hf.evaluation.observers import load_observers
from lbgen_hf.fine_tuning.card import CONFIG_FILE
from lbgen_hf.fine_tuning.config import LbGenConfig
from lbgen_hf.pipeline_lbgen import LORA_FILE, LbGenPipeline
from lbgen_hf.reproduction import adapters, arms, cells
from lbgen_hf.reproduction.adapters import RECIPES, Recipe, train_adapter
from lbgen_hf.reproduction.arms import NOISE_SEED, make_images, make_specific_images, parse_loras, standard_arms
from lbgen_hf.rewards.clip_features import ClipFeatures
from lbgen_hf.shipped import LBGEN_TINY, companions_of

TINY = cells.Settings(
    images_per_class=4,
    num_inference_steps=1,
    num_train_epochs=1,
    backbones=("resnet",),
    few_shot_fractions=(),
    arms=("base", "lbgen"),
)
SMALL = {
    "biaslab-validation": lambda: biaslab.validation(32),
    "biaslab-cue-conflict": lambda: biaslab.cue_conflict(1),
    "biaslab-contexts": lambda: biaslab.contexts(32),
    "biaslab-backgrounds": lambda: biaslab.backgrounds(64),
    "biaslab-novel": lambda: biaslab.novel_classes(3, 2, 4),
}


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(specs: list[str]) -> list[Benchmark]:
        return [dataclasses.replace(benchmark, load=SMALL[benchmark.name]) for benchmark in parse_benchmarks(specs)]

    monkeypatch.setattr(cells, "QUICK", TINY)
    monkeypatch.setattr(cells, "parse_benchmarks", small)
    monkeypatch.setattr(benchmarks, "select_c", functools.partial(benchmarks.select_c, grid=(1.0,)))
    monkeypatch.setattr(cells, "RECIPE", cells.RECIPE | {"num_workers": 0})


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", *map(str, arguments)])
    return int(stop.value.code or 0)


def test_a_killed_run_resumes_and_ends_with_the_same_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run("--quick", "--seeds", 2, "--out", whole) == 0
    report = (whole / "REPORT.md").read_text()

    # What a kill in the fourth cell leaves: three cells, and the beginnings of the fourth.
    order = ["base", "base-resnet-0", "base-resnet-1", "lbgen", "lbgen-resnet-0", "lbgen-resnet-1"]
    for folder in ("images", "specific"):
        shutil.copytree(whole / folder / "base", killed / folder / "base")
    (killed / "cells").mkdir()
    for name in order[:3]:
        shutil.copy(whole / f"cells/{name}.json", killed / "cells")
    for stale in ("images/.lbgen.tmp/anchor", "work/lbgen-resnet-0/checkpoint-1"):
        (killed / stale).mkdir(parents=True)
    capsys.readouterr()
    assert run("--quick", "--seeds", 2, "--out", killed) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if line in order] == order[3:]
    assert (killed / "REPORT.md").read_text() == report

    for deleted, made_again in (("images", order[::3]), ("specific/lbgen", order[3:4])):
        shutil.rmtree(killed / deleted)
        assert run("--quick", "--seeds", 2, "--out", killed) == 0
        assert [line for line in capsys.readouterr().err.splitlines() if line in order] == made_again
        assert (killed / "REPORT.md").read_text() == report

    shutil.rmtree(killed / "images")
    before = (killed / "cells/base.json").read_bytes()
    monkeypatch.setattr(cells, "QUICK", dataclasses.replace(TINY, images_per_class=5))
    assert run("--quick", "--seeds", 2, "--out", killed) == 2
    assert (killed / "cells/base.json").read_bytes() == before
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "differs in images per class, 4 instead of 5" in error

    results = json.loads((whole / "report.json").read_text())
    assert results["world"] == biaslab.world()
    orders = {order["metric"]: order for order in results["orders"]}
    for metric in ("mi_background", "transfer"):
        ours, theirs = (results["metrics"][arm][metric][0] for arm in ("lbgen", "base"))
        assert orders[metric]["difference"] == pytest.approx(ours - theirs)
    assert "## Expected orders" in report
    transfer = [results["backbones"][arm]["transfer"] for arm in ("base", "lbgen")]
    above_base = sum(ours - theirs for theirs, ours in zip(*transfer, strict=True)) / len(results["pairs"])
    learned = report.split("## What backbones learn")[1]
    assert re.search(rf"^\| lbGen \| {above_base:.1f} \[", learned, re.MULTILINE)
    for arm in ("base", "lbgen"):
        counts = results["shapes"][arm]
        assert list(counts) == ["bow", "bowtie", "longbow"]
        assert all(sum(shapes.values()) == TINY.images_per_class for shapes in counts.values())
    assert "doses.png" not in report  # there is no arm of another dose
    for plot in ("same_noise.jpg", "frontier.png", "polysemy.jpg"):
        assert f"plots/{plot}" in report
        assert (whole / "plots" / plot).is_file()


def stand_in_for_judge(self: cells.Cells, arm: str) -> dict:
    for folder in ("images", "specific"):
        (self.out / folder / arm).mkdir(parents=True, exist_ok=True)
    return {"images": "a"}


def test_processes_share_the_cells_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells.Cells, "_judge", stand_in_for_judge)
    monkeypatch.setattr(cells.Cells, "_pretrain", lambda self, cell: {"scores": {}})
    first, second = (cells.Cells(tmp_path, TINY, standard_arms({})) for _ in range(2))
    (tmp_path / "cells").mkdir()
    images, backbone, other = cells.Cell("base"), cells.Cell("base", "resnet", 0), cells.Cell("real")
    assert first.make(backbone) is None  # its images are missing

    met: list[object] = []
    assert first.make(images, lambda name: met.extend([second.make(images), second.make(other)]))
    assert met[0] is None  # the other process is at it
    assert met[1] is not None
    assert second.make(images, pytest.fail) == first.read(images)  # and now it is done
    assert second.make(backbone)


def test_backbones_of_other_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter("aab")
    monkeypatch.setattr(cells.Cells, "_judge", lambda *args: stand_in_for_judge(*args) | {"images": next(made)})
    monkeypatch.setattr(cells.Cells, "_pretrain", lambda self, cell: {"scores": {}})
    these = cells.Cells(tmp_path, TINY, standard_arms({}))
    (tmp_path / "cells").mkdir()
    images, backbone = cells.Cell("base"), cells.Cell("base", "resnet", 0)
    these.make(images)
    these.make(backbone)

    def make_again() -> dict | None:
        (tmp_path / "cells/base.json").unlink()
        assert these.read(backbone) is None  # until its images are there again
        these.make(images)
        return these.read(backbone)

    assert make_again()  # they are the same
    with pytest.raises(UserError, match="differs in images, a instead of b"):
        make_again()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--seeds", "1"], "--seeds must be at least 2"),
        (["--lora", "folder"], "NAME=FOLDER"),
        (["--lora", "two words=folder"], "NAME=FOLDER"),
        (["--lora", "base=folder"], "there is an arm of this name"),
        (["--lora", "no_entire=folder"], "there is an arm of this name"),  # not of this run, but of the expected orders
        (["--lora", "mine=nowhere"], "nowhere holds no pytorch_lora_weights.safetensors"),
        (["--lora", "mine=damaged"], "the LoRA 'damaged' does not fit the model"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / LORA_FILE).write_text("hello")
    assert run("--quick", "--out", tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("lbgen: error: ")
    assert error.count("\n") == 1
    assert named in error
    assert not (tmp_path / "out").exists()


def test_a_tilde_after_the_equals_sign_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_loras(["mine=~/lora"], ())["mine"].lora == str(tmp_path / "lora")


def test_an_output_that_is_a_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out"
    path.touch()
    assert run("--quick", "--out", path) == 2
    assert str(path) in capsys.readouterr().err


def test_scene_arms_have_the_bias_that_they_say() -> None:
    scenes = standard_arms(companions_of(LBGEN_TINY).loras)
    # scenes need no pipeline
    images = {name: make_images(scenes[name], None, 24, 1) for name in ("real", "unbiased", "retrieval")}
    judge = load_observers()["judge"]
    seen = {name: measure(judge_images(x, CLASSES, judge), replicates=2) for name, x in images.items()}
    own = {name: estimates["own_background"].value for name, estimates in seen.items()}
    # bias + (1 - bias) / 9 backgrounds
    assert own["real"] == pytest.approx(0.6 + 0.4 / 9, abs=0.08)
    assert own["retrieval"] == pytest.approx(0.35 + 0.65 / 9, abs=0.08)
    assert own["unbiased"] == pytest.approx(1 / 9, abs=0.06)
    assert all(estimates["class_accuracy"].value > 0.95 for estimates in seen.values())


def test_from_scratch_completes_a_folder_with_fine_tuned_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[Path] = []

    def fail(recipe: Recipe, folder: Path) -> Path:
        raise UserError("the disk is full")

    scores = dict.fromkeys(cells.SCORES, 50.0) | {"relative_gap": None}  # which no backbone has that is never right
    monkeypatch.setattr(cells.Cells, "_pretrain", lambda self, cell: {"scores": scores | {"transfer": cell.seed}})
    monkeypatch.setattr(cells, "QUICK", dataclasses.replace(TINY, arms=("base", "lbgen", "lbgen_half")))
    monkeypatch.setattr(arms, "RECIPES", {name: RECIPES[name] for name in ("upstream", "names_4")})
    out = tmp_path / "out"
    assert run("--quick", "--seeds", 2, "--out", out) == 0
    assert "Not made yet" not in (out / "REPORT.md").read_text()
    monkeypatch.setattr(cells, "train_adapter", fail)
    assert run("--quick", "--from-scratch", "--seeds", 2, "--out", out) == 2
    unmade = "Not made yet: the authors' code; lbGen from 4 names."
    assert unmade in (out / "REPORT.md").read_text()  # which is of the arms that are complete
    monkeypatch.setattr(cells, "train_adapter", lambda recipe, folder: trained.append(folder) or MODELS / "lora")
    capsys.readouterr()
    assert run("--quick", "--from-scratch", "--seeds", 2, "--out", out) == 0
    assert trained == [out / "adapters" / name for name in ("upstream", "names_4")]
    made = [line for line in capsys.readouterr().err.splitlines() if re.match("base|lbgen|upstream|names_4", line)]
    assert made == ["upstream", "upstream-resnet-0", "upstream-resnet-1", "names_4"]
    report = (out / "REPORT.md").read_text()
    learned, in_images = report.split("## In the images")
    for title in ("the authors' code", "lbGen from 4 names"):
        assert f"| {title} |" in in_images
    assert "| the authors' code |" in learned
    assert "| lbGen from 4 names |" not in learned  # it is about the images alone
    assert "plots/doses.png" in report
    assert (out / "plots/doses.png").is_file()  # LoRA scales 0, 0.5 and 1
    assert json.loads((out / "report.json").read_text())["backbones"]["base"]["relative_gap"] == [None, None]
    assert "| - / - |" in report
    assert "Not made yet" not in report


def test_a_backbone_that_is_never_right_has_every_score_that_is_defined() -> None:
    columns = {"predictions": [9] * 3, "references": [0] * 3, "partitions": ["mixed_same", "mixed_rand", "original"]}
    benchmark = Benchmark("b", "background_gap", tuple, lambda *_: {"data": {**columns, "control_correct": [0]}})
    found = cells._scores_of(benchmark, None, (), benchmarks.Run())
    assert found.pop("relative_gap") is None
    assert found.pop("background_gap") == 0
    assert set(found.values()) == {0}


def test_a_recipe_changes_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"max_train_steps": 1, "train_batch_size": 2, "num_inference_steps": 1, "num_gradient_steps": 1}
    short |= {"validation_steps": 0}
    recipe = Recipe("few names, random CLIP", short | {"quality_weight": 0.0}, num_names=4, random_clip=True)
    folder = train_adapter(recipe, tmp_path / "adapter")
    config = yaml.safe_load((folder / CONFIG_FILE).read_text())
    shipped = yaml.safe_load((MODELS / "lora" / CONFIG_FILE).read_text())
    assert config["quality_weight"] == 0.0
    assert config["individual_weight"] == shipped["individual_weight"]
    assert load_class_names(config["class_names"]).names == tuple(CLASSES[::4])
    clip, shipped_clip = (ClipFeatures.from_pretrained(path) for path in (config["clip_model"], LBGEN_TINY))
    assert clip.text_features(["star"]).shape == shipped_clip.text_features(["star"]).shape
    assert not torch.allclose(clip.text_features(["star"]), shipped_clip.text_features(["star"]), atol=0.1)
    written = (folder / LORA_FILE).stat().st_mtime_ns
    assert train_adapter(recipe, folder) == folder
    assert (folder / LORA_FILE).stat().st_mtime_ns == written
    with pytest.raises(UserError, match="begun with another recipe"):
        train_adapter(dataclasses.replace(recipe, num_names=8), folder)

    other = tmp_path / "models"
    for part in ("pipeline", "clip", "quality"):
        shutil.copytree(MODELS / part, other / part)
    monkeypatch.setattr("lbgen_hf.shipped.MODELS", other)
    assert train_adapter(recipe, folder) == folder
    shutil.copy(MODELS / "judge/model.safetensors", other / "quality")
    with pytest.raises(UserError, match="other models"):
        train_adapter(recipe, folder)


def test_a_recipe_trains_its_clip_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def train_clip(command: list, check: bool) -> None:
        commands.append(command)
        shutil.copytree(MODELS / "clip", Path(command[command.index("--output_dir") + 1]) / "clip")

    monkeypatch.setattr(adapters.subprocess, "run", train_clip)
    short = {"max_train_steps": 1, "train_batch_size": 2, "num_inference_steps": 1, "num_gradient_steps": 1}
    recipe = Recipe("other captions", short | {"validation_steps": 0}, clip_options=("--mention", "0"))
    monkeypatch.chdir(tmp_path)
    for folder in ("adapter", tmp_path / "adapter"):  # the folder is the same however it is named
        folder = train_adapter(recipe, Path(folder))
        (folder / "README.md").unlink()
    assert len(commands) == 1
    assert commands[0][-2:] == ["--mention", "0"]
    assert yaml.safe_load((folder / CONFIG_FILE).read_text())["clip_model"] == str(folder / "clip")


def test_a_clip_that_cannot_be_trained_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not be trained") as raised:
        train_adapter(Recipe("none", clip_options=("--no_such_option",)), tmp_path / "adapter")
    assert "\n" not in str(raised.value)


def test_recipes_have_settings_that_a_run_accepts() -> None:
    usage = subprocess.run([sys.executable, adapters._clip_script(), "--help"], capture_output=True, text=True).stdout
    for recipe in RECIPES.values():
        LbGenConfig.from_yaml(MODELS / "lora" / CONFIG_FILE, **recipe.changes)
        assert all(option in usage for option in recipe.clip_options if option.startswith("--"))
    upstream = yaml.safe_load((Path(__file__).parents[2] / "training/configs/upstream.yaml").read_text())
    assert RECIPES["upstream"].changes == upstream


def test_prompts_of_the_class_name_are_what_the_pipeline_samples_from_it() -> None:
    pipe = LbGenPipeline.from_pretrained(LBGEN_TINY)
    pipe.set_progress_bar_config(disable=True)
    images = make_images(standard_arms({})["base"], pipe, 2, 2)
    expected = sample_images(pipe, CLASSES[:3], 2, NOISE_SEED, num_inference_steps=2, guidance_scale=2.0)
    torch.testing.assert_close(images[:3], expected, atol=1e-4, rtol=0)


def test_each_specific_name_brings_its_own_shape() -> None:
    pipe = LbGenPipeline.from_pretrained(LBGEN_TINY)
    pipe.set_progress_bar_config(disable=True)
    images = make_specific_images(standard_arms({})["base"], pipe, 6, 8)
    judge = load_observers()["judge"].judge
    shapes = {name: [SHAPE_NAMES[shape] for shape in judge(of_name)["shape"]] for name, of_name in images.items()}
    assert list(shapes) == ["bowtie", "longbow"]
    assert shapes["bowtie"].count("bowtie") > shapes["longbow"].count("bowtie")
    assert shapes["longbow"].count("longbow") > shapes["bowtie"].count("longbow")
