"""`lbgen evaluate` from end to end, on a small untrained backbone and small twins."""

import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

from lbgen_hf.biaslab.scenes import CLASSES
from lbgen_hf.cli import main
from lbgen_hf.errors import UserError
from lbgen_hf.evaluation import backbones, benchmarks, biaslab, features
from lbgen_hf.evaluation.benchmarks import parse_benchmarks
from lbgen_hf.evaluation.evaluate import evaluate, parse_checkpoints
from lbgen_hf.evaluation.report import write_report


def save_backbone(folder: Path, seed: int, classes: Sequence[str] = CLASSES) -> Path:
    torch.manual_seed(seed)
    overlay = {"input_size": (3, 64, 64), "crop_pct": 1.0}
    model = timm.create_model("test_resnet", num_classes=len(classes), pretrained_cfg_overlay=overlay)
    save_for_hf(model, folder, model_config={"label_names": classes}, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return [save_backbone(root / f"seed-{seed}", seed) for seed in range(3)]


@pytest.fixture
def small_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {
        "biaslab-validation": lambda: biaslab.validation(32),
        "biaslab-cue-conflict": lambda: biaslab.cue_conflict(112),
        "biaslab-contexts": lambda: biaslab.contexts(64),
        "biaslab-backgrounds": lambda: biaslab.backgrounds(64),
        "biaslab-novel": lambda: biaslab.novel_classes(4, 2, 4),
        "biaslab-novel-few-shot-0.5": lambda: biaslab.novel_classes(4, 2, 4),
    }
    for name, load in sizes.items():
        made = benchmarks._BIASLAB[name]()
        changed = dataclasses.replace(made, load=load)
        monkeypatch.setitem(benchmarks._BIASLAB, name, lambda changed=changed: changed)
    monkeypatch.setattr(benchmarks, "select_c", lambda *a, **k: select_quickly(*a, **k))


def select_quickly(*args, **options):
    from lbgen_hf.evaluation.probes import select_c

    return select_c(*args, grid=(1.0, 10.0, 100.0), max_iterations=20)


TWINS = (
    "biaslab-validation,biaslab-cue-conflict,biaslab-contexts,biaslab-backgrounds,biaslab-novel,"
    "biaslab-novel-few-shot-0.5"
)


def test_report_of_several_recipes(
    checkpoints: list[Path], small_twins: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["evaluate", f"first={checkpoints[0]}", f"first={checkpoints[1]}", f"second={checkpoints[2]}"]
    arguments += ["--benchmarks", TWINS, "--out", str(tmp_path), "--n-resamples", "50", "--device", "cpu"]
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert not exit_.value.code, capsys.readouterr().err
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    scores = {(row["benchmark"], row["score"], row["label"]): row for row in report["scores"]}
    first = scores["biaslab-validation", "accuracy", "first"]
    assert first["seeds"] == 2
    assert first["value"] == pytest.approx(np.mean(first["per_seed"]))
    assert scores["biaslab-validation", "accuracy", "second"]["seeds"] == 1
    assert len(report["cells"]) == 6 * 3
    assert {cell["world"]["hash"] for cell in report["cells"]} == {biaslab.world()["hash"]}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for words in (
        "## Accuracy",
        "## Transfer: logistic regression",
        "## Few-shot transfer",
        "## Bias",
        "## Differences from first, paired by image",
        "## What could be seen",
        "other decisions",
        "at an edge of the grid",
        f"hash {biaslab.world()['hash']}",
    ):
        assert words in text
    for plot in ("accuracy", "bias", "few_shot", "c_curves"):
        assert f"plots/{plot}.png" in text
        assert Image.open(tmp_path / "plots" / f"{plot}.png").size[0] > 300
    cell = json.loads((tmp_path / report["cells"][0]["cell"]).read_text())
    assert cell["data"]["correct"]


def test_a_killed_run_resumes(
    checkpoints: list[Path], small_twins: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["biaslab-validation", "biaslab-contexts"]
    whole = evaluate([str(checkpoints[0])], names, tmp_path / "whole", device="cpu", n_resamples=20)
    computed = []
    compute = features.compute

    def killed_at_the_second(*args, **options):
        if len(computed) == 1:
            raise KeyboardInterrupt
        computed.append(1)
        return compute(*args, **options)

    monkeypatch.setattr(features, "compute", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate([str(checkpoints[0])], names, tmp_path / "resumed", device="cpu", n_resamples=20)
    assert len(list((tmp_path / "resumed" / "cells").glob("*.json"))) == 1
    monkeypatch.setattr(features, "compute", lambda *a, **k: computed.append(1) or compute(*a, **k))
    resumed = evaluate([str(checkpoints[0])], names, tmp_path / "resumed", device="cpu", n_resamples=20)
    assert len(computed) == 2
    assert resumed.read_text() == whole.read_text()


def test_other_weights_in_the_same_folder_are_measured_again(
    checkpoints: list[Path], small_twins: None, tmp_path: Path
) -> None:
    folder = tmp_path / "backbone"
    shutil.copytree(checkpoints[0], folder)
    evaluate([str(folder)], ["biaslab-validation"], tmp_path / "out", device="cpu", n_resamples=20)
    shutil.copy(checkpoints[1] / "model.safetensors", folder / "model.safetensors")
    evaluate([str(folder)], ["biaslab-validation"], tmp_path / "out", device="cpu", n_resamples=20)
    assert len(list((tmp_path / "out" / "cells").glob("*.json"))) == 2


def test_a_folder_of_named_classes(checkpoints: list[Path], tmp_path: Path) -> None:
    twin = biaslab.validation(16)
    for i in range(16):
        path = tmp_path / "data" / CLASSES[int(twin.labels[i])] / f"{i}.png"
        path.parent.mkdir(parents=True)
        twin.image(i).save(path)
    evaluate([str(checkpoints[0])], [f"validation={tmp_path / 'data'}"], tmp_path / "out", device="cpu", n_resamples=20)
    cell = json.loads(next((tmp_path / "out" / "cells").glob("*.json")).read_text())
    assert len(cell["data"]["correct"]) == 16


def accuracy_cell(label: str, correct: list[int], **details) -> dict:
    return {
        "label": label,
        "checkpoint": label,
        "benchmark": "b",
        "kind": "accuracy",
        "weights_sha256": "0" * 64,
        "details": details,
        "data": {"correct": correct},
    }


def test_differences_are_paired(tmp_path: Path) -> None:
    base = [1, 0] * 200
    labels = {"base": base, "better": [1, 1, 1, 1, *base[4:]], "same": base}
    cells = [accuracy_cell(label, correct) for label, correct in labels.items()]
    text = write_report(cells, tmp_path, n_resamples=200).read_text(encoding="utf-8")
    report = json.loads((tmp_path / "report.json").read_text())
    better, same = report["differences"]
    assert better["difference"] == pytest.approx(0.5)
    assert same["interval"] == [0, 0]
    assert better["smallest_detectable"] < report["scores"][0]["smallest_detectable_difference"] / 5
    assert f"| {better['smallest_detectable']:.1f} |" in text.split("## What could be seen")[1]  # not that of "same"


def bias_cells(label: str, num_right: int) -> list[dict]:
    """A cell of each measure of bias, of a checkpoint right on so many of 8: for a cue, in P_0, of originals."""
    right = [1] * num_right + [9] * (8 - num_right)
    data = {
        "texture_inclination": {"predictions": right, "references": [0, 1] * 4, "textures": [1, 0] * 4},
        "context_bias": {
            "predictions": right + [1, 9] * 12,
            "references": [1] * 32,
            "num_uncommon": [0] * 8 + [1, 2, 3] * 8,
        },
        "background_gap": {
            "predictions": [*right, 1, 1, 9, 1],
            "references": [1] * 12,
            "partitions": ["original"] * 8 + ["mixed_same", "mixed_rand"] * 2,
            "control_correct": [1, 0] * 4,
        },
    }
    return [
        {**accuracy_cell(label, []), "benchmark": kind, "kind": kind, "data": of_kind} for kind, of_kind in data.items()
    ]


def test_what_one_checkpoint_leaves_undefined_is_missing_alone(tmp_path: Path) -> None:
    """It is right on no original and no image of P_0, and decides for neither cue."""
    checkpoints = {"first": 4, "second": 0, "third": 6}
    cells = [cell for label, num_right in checkpoints.items() for cell in bias_cells(label, num_right)]
    text = write_report(cells, tmp_path, n_resamples=50).read_text(encoding="utf-8")
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    rows = {(row["label"], row["score"]): row for row in report["scores"]}
    undefined = {name for label, name in rows if label == "second" and rows[label, name]["value"] is None}
    assert undefined == {"texture_inclination", "cb_avg", "cb_12", "cb_macro", "relative_gap"}
    assert all(rows[label, name]["value"] is not None for label, name in rows if label != "second")
    differences = {(row["label"], row["score"]): row for row in report["differences"]}
    assert {name for (label, name), row in differences.items() if row["difference"] is None} == undefined
    assert differences["second", "relative_gap"]["excludes_zero"] is None
    bias = text.split("## Bias")[1].split("##")[0]
    lines = {label: next(line for line in bias.splitlines() if line.startswith(f"| {label} ")) for label in checkpoints}
    shown = [cell.strip() != "-" for cell in lines["second"].split("|")[3:-1]]
    assert shown == [False, False, False, False, True, False, True]  # the gap and its control
    assert "- |" not in lines["first"] + lines["third"]
    assert "| second | background_gap: gap / originals | - | - |" in text
    assert not re.search(r"\bnan\b", text)


def test_a_mean_over_seeds_of_which_one_is_undefined_is_undefined(tmp_path: Path) -> None:
    write_report([*bias_cells("recipe", 4), *bias_cells("recipe", 0)], tmp_path, n_resamples=50)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    (row,) = (row for row in report["scores"] if row["score"] == "relative_gap")
    assert (row["value"], row["seeds"], row["per_seed"][1]) == (None, 2, None)
    assert row["per_seed"][0] is not None


def test_only_scores_of_the_same_images_are_subtracted(checkpoints: list[Path], tmp_path: Path) -> None:
    """A head that lacks a class is measured on fewer images."""
    twin = biaslab.validation(32)
    fewer = save_backbone(tmp_path / "fewer", 3, CLASSES[1:])
    cells = []
    for label, folder in (("whole", checkpoints[0]), ("fewer", fewer), ("again", checkpoints[1])):
        backbone = backbones.load_backbone(folder, "cpu")
        measured = benchmarks.class_accuracy(backbone, twin, benchmarks.Run())
        cells.append({**accuracy_cell(label, []), **measured})
    assert cells[1]["details"]["images_of_other_classes"] == 2
    text = write_report(cells, tmp_path, n_resamples=20).read_text(encoding="utf-8")
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [row["label"] for row in report["differences"]] == ["again"]
    assert "that images differ: fewer on b." in text
    with pytest.raises(UserError, match="the checkpoints of whole know different classes of b"):
        write_report([{**cell, "label": "whole"} for cell in cells], tmp_path, n_resamples=20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmarks", "imagnet"], "unknown benchmark 'imagnet'"),
        (["--benchmarks", "focus"], "benchmark focus needs its data: give focus=FOLDER"),
        (["--benchmarks", "biaslab=x"], "is made here and takes no folder"),
        (["--benchmarks", "biaslab,biaslab-novel"], "biaslab-novel is given twice"),
        (["--benchmarks", "focus=/nowhere"], "there is no folder /nowhere"),
        (["--benchmarks", "dtd=/nowhere"], "no dtd in /nowhere"),
        (["--benchmarks", "biaslab-novel", "--confidence-level", "95"], "--confidence-level must be"),
        (["nobody/nothing", "--benchmarks", "biaslab"], "no checkpoint 'nobody/nothing'"),
        (["a=", "--benchmarks", "biaslab"], "no checkpoint ''"),
        ([".", "--benchmarks", "biaslab"], ". has no config.json"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No benchmark is read for a checkpoint that does not exist: biaslab's takes half a minute to make."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("lbgen_hf.evaluation.biaslab._render_all", None)
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", "resnet18", *arguments, "--out", str(tmp_path / "out")])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("lbgen: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_an_unsuitable_head_is_refused_before_any_image_is_shown(
    checkpoints: list[Path], small_twins: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "compute", None)
    headless = save_backbone(tmp_path / "headless", 0, [])
    folder = tmp_path / "other"
    shutil.copytree(checkpoints[0], folder)
    config = json.loads((folder / "config.json").read_text())
    config["label_names"] = [f"class {i}" for i in range(len(CLASSES))]
    (folder / "config.json").write_text(json.dumps(config))
    for checkpoint, message in ((folder, "classes that are not ImageNet's"), (headless, "has no classification head")):
        for name in ("validation", "cue-conflict", "contexts", "backgrounds"):
            with pytest.raises(UserError, match=message):
                evaluate([str(checkpoint)], ["biaslab-novel", f"biaslab-{name}"], tmp_path / "out", device="cpu")


def test_checkpoints() -> None:
    assert [c.label for c in parse_checkpoints(["a/b", "real=c/d", "real=e"])] == ["b", "real", "real"]
    with pytest.raises(UserError, match="checkpoint a/b is given twice"):
        parse_checkpoints(["a/b", "x=a/b"])
    with pytest.raises(UserError, match="have the same name"):
        parse_checkpoints(["a/b", "c/b"])


def test_a_path_with_an_equals_sign_that_is_there_is_no_label(tmp_path: Path) -> None:
    folder = tmp_path / "lr=0.1" / "last"
    folder.mkdir(parents=True)
    (plain,) = parse_checkpoints([str(folder)])
    assert (plain.label, plain.path) == ("last", str(folder))
    (labelled,) = parse_checkpoints([f"mine={folder}"])
    assert (labelled.label, labelled.path) == ("mine", str(folder))
    with pytest.raises(UserError, match="have the same name"):
        parse_checkpoints([str(folder), "other/last"])


def test_a_failure_leaves_no_folder_and_a_config_of_no_images_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(b"no image")
    save_for_hf(timm.create_model("test_vit", num_classes=1), tmp_path / "vit", {"label_names": ["a"]})
    benchmarks = [f"validation={tmp_path / 'images'}"]
    with pytest.raises(UserError, match="cannot read the image"):
        evaluate([str(tmp_path / "vit")], benchmarks, tmp_path / "out", device="cpu", batch_size=2**70)
    assert not (tmp_path / "out").exists()
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    config["pretrained_cfg"]["input_size"] = [3, 40, 40]
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="vit does not take the images that its config makes of any: Input height"):
        evaluate([str(tmp_path / "vit")], benchmarks, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_names_of_benchmarks() -> None:
    names = [benchmark.name for benchmark in parse_benchmarks(["transfer=/data", "few-shot=/data,biaslab-validation"])]
    assert names[:2] == ["aircraft", "cars196"]
    assert len(names) == 8 + 8 * 4 + 1
    assert "dtd-few-shot-0.1" in names


def test_a_tilde_after_the_equals_sign_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_checkpoints(["real=~/backbone"])[0].path == str(tmp_path / "backbone")
    for benchmark in parse_benchmarks(["focus=~/nowhere,few-shot=~/nowhere"])[:2]:
        with pytest.raises(UserError, match=str(tmp_path / "nowhere")):
            benchmark.load()
