"""The whole audit: the truth on biaslab, false alarms, Python and command line."""

import html
import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from worlds import as_dataset, biaslab_dataset, encode, measure

from lbgen_hf import UserError, audit
from lbgen_hf.cli import main
from lbgen_hf.evaluation.audit.attributes import ATTRIBUTES
from lbgen_hf.evaluation.audit.collecting import Sample
from lbgen_hf.evaluation.audit.findings import examine, examine_all, verdicts
from lbgen_hf.evaluation.audit.text import worst_classes

ON_AXIS = {"backgrounds": "background_colour", "places": "object_place", "textures": "object_texture"}


def score(sample: Sample, name: str) -> float:
    finding = examine(ATTRIBUTES[name], sample.values[name], sample.labels, len(sample.class_names), resamples=200)
    return finding.relation.score


@pytest.mark.parametrize("axis", ON_AXIS)
def test_a_planted_bias_is_found(worlds: dict[str | None, Sample], axis: str) -> None:
    assert score(worlds[axis], ON_AXIS[axis]) > 0.1 + score(worlds[None], ON_AXIS[axis])


@pytest.mark.slow
@pytest.mark.parametrize("axis", ON_AXIS)
def test_biases_come_out_in_order(worlds: dict[str | None, Sample], axis: str) -> None:
    between = [score(measure(biaslab_dataset(480, axis, bias)), ON_AXIS[axis]) for bias in (0.3, 0.6)]
    scores = [score(worlds[None], ON_AXIS[axis]), *between, score(worlds[axis], ON_AXIS[axis])]
    assert np.all(np.diff(scores) > 0), scores


@pytest.mark.parametrize("axis", ON_AXIS)
def test_planting_one_axis_moves_no_other(worlds: dict[str | None, Sample], axis: str) -> None:
    for other, name in ON_AXIS.items():
        if other != axis:
            unmoved, moved = score(worlds[None], name), score(worlds[axis], name)
            assert abs(moved - unmoved) < 0.05, (name, unmoved, moved)


def test_an_unbiased_world_has_no_background_bias(worlds: dict[str | None, Sample]) -> None:
    assert abs(score(worlds[None], "background_colour")) < 0.02


def random_values(rng: np.random.Generator, num: int) -> dict[str, np.ndarray]:
    return {name: rng.normal(size=(num, len(a.steps))) for name, a in ATTRIBUTES.items() if not a.categorical}


@pytest.mark.parametrize("num_classes", [2, 12])
@pytest.mark.parametrize("major", [None, 0.96])
def test_false_alarms_are_rare(num_classes: int, major: float | None) -> None:
    """Any alarm in any attribute counts; tests/benchmarks/audit.py does 200 shuffles, of 100 classes too."""
    rng = np.random.default_rng(0)
    num = max(200, 10 * num_classes)
    values = random_values(rng, num)
    chosen = {name: ATTRIBUTES[name] for name in list(values)[:5]}
    alarms = 0
    for seed in range(20):
        rest = rng.integers(1, num_classes, num) if major else rng.integers(0, num_classes, num)
        labels = np.where(rng.random(num) < major, 0, rest) if major else rest
        labels[: 5 * num_classes] = np.arange(5 * num_classes) % num_classes
        findings = examine_all(chosen, values, rng.permutation(labels), num_classes, resamples=299, seed=seed)
        alarms += any(word in ("weak", "clear", "strong") for word in verdicts(findings))
    assert alarms <= 1


def test_a_missing_attribute_is_left_out_of_its_score_alone() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(300) % 3
    values = labels[:, None] + rng.normal(size=(300, 1))
    values[labels == 2] = np.nan
    finding = examine(ATTRIBUTES["brightness"], values, labels, 3)
    assert finding.num_images == 200
    assert np.isnan(finding.relation.classes[2])
    assert finding.relation.classes[:2] == pytest.approx([finding.relation.score] * 2, abs=0.02)
    assert examine(ATTRIBUTES["brightness"], np.full((300, 1), np.nan), labels, 3) is None


def test_a_few_stray_images_tell_nothing() -> None:
    labels = np.arange(300) % 3
    values = np.full((300, 1), np.nan)
    values[[0, 1]] = [[60.0], [95.0]]  # one JPEG each among the PNGs of two classes
    assert examine(ATTRIBUTES["jpeg_quality"], values, labels, 3) is None


def test_worst_classes_have_the_attribute() -> None:
    kinds = [{"file_format": "JPEG", "quality": 60}, {"file_format": "JPEG", "quality": 95}, {}]
    labels = [i % 3 for i in range(90)]
    pixels = np.random.default_rng(0).integers(0, 256, (90, 24, 24, 3), dtype=np.uint8)
    contents = [encode(image, **kinds[label]) for image, label in zip(pixels, labels, strict=True)]
    found = audit(as_dataset(contents, labels, ["a", "b", "c"]))
    assert set(worst_classes(found)["jpeg_quality"]) == {0, 1}  # the images of c are PNGs


def test_examples_have_the_classes_own_value_and_counter_examples_have_not() -> None:
    labels = np.arange(400) % 2
    values = np.where(np.arange(400) % 10 == 0, 1 - labels, labels)[:, None].astype(float)
    finding = examine(ATTRIBUTES["file_format"], values, labels, 2)
    examples, counter_examples = finding.typical_images(labels, 1)
    assert np.all(labels[examples] == 1)
    assert np.all(values[examples] == 1)
    assert len(counter_examples) == 0  # only class 0 has the odd ones: every tenth image is even
    examples, counter_examples = finding.typical_images(labels, 0)
    assert np.all(values[examples] == 0)
    assert np.all(values[counter_examples] == 1)
    assert len(examples) + len(counter_examples) == 200


def striped(level: float, repeats: int = 1, leak: bool = False) -> datasets.Dataset:
    """Two classes of noise; class 1 is brighter by `level`, and with `leak` its files are JPEG."""
    rng = np.random.default_rng(0)
    contents, labels = [], []
    jpeg = {"file_format": "JPEG", "quality": 100, "subsampling": 0}
    for i in range(60):
        pixels = rng.integers(0, 120, (24, 24, 3)) + int(level * (i % 2))
        content = encode(pixels.astype(np.uint8), **(jpeg if leak and i % 2 else {}))
        contents += [content] * repeats
        labels += [i % 2] * repeats
    return as_dataset(contents, labels, ["dim", "bright"])


def test_two_lines_of_python(capsys: pytest.CaptureFixture) -> None:
    audit(striped(100)).report()
    printed = capsys.readouterr().out
    assert "brightness" in printed
    assert "strong" in printed


def test_file_traits_are_apart() -> None:
    found = audit(striped(0, leak=True))
    by_name = {finding.attribute.name: finding for finding in found.findings}
    assert found.verdicts["file_format"] == "strong"
    assert by_name["file_format"].attribute.axis == "file"
    assert by_name["file_format"].relation.score == pytest.approx(1)
    assert found.verdicts["brightness"] in ("none", "constant")


def test_a_collapsed_attribute_is_called_constant() -> None:
    found = audit(striped(0))
    assert found.verdicts["file_size"] == "constant"
    assert found.verdicts["brightness"] in ("constant", "none")


def test_audit_json_is_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    striped(60).to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(SystemExit) as end:
        main(["audit", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "out")])
    assert not end.value.code
    assert "brightness" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    first = found["attributes"][0]  # hardly any of these images has a background
    assert set(first) == {"name", "axis", "score", "interval", "p_value", "entropy_given_label"}
    assert (first["name"], first["axis"]) == ("object_place", "place")
    assert first["interval"][0] <= first["score"] <= first["interval"][1]
    assert (found["images"], found["unreadable"]) == (60, [])
    assert set(found["classes"]) == {"dim", "bright"}


def test_the_page_is_one_file_with_examples_and_escaped_names(tmp_path: Path) -> None:
    names = ["<b>dim</b>", "bright & bold"]
    data = striped(100).cast_column("label", datasets.ClassLabel(names=names))
    page = audit(data, against=striped(0).cast_column("label", data.features["label"])).save(tmp_path).read_text()
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,)', page) == []
    assert "&lt;b&gt;dim&lt;/b&gt;" in page
    assert "<b>dim" not in page
    assert page.count("<img") >= 2 * 8
    for finding in audit(data).findings:
        assert html.escape(finding.attribute.meaning) in page


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: striped(0).remove_columns("label"), "no label column"),
        (lambda: striped(0).filter(lambda row: row["label"] == 0), "one class only"),
        (lambda: striped(0).select(range(9)), "4 readable images of class 'bright'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    make, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make().to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(SystemExit) as end:
        main(["audit", str(tmp_path / "a.parquet")])
    assert end.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lbgen: error")]
    assert len(said) == 1
    assert message in said[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([""], "the dataset's name is empty"), (["x", "--seed", "-1"], "seed must be"), (["x", "--features", ""], "''")],
)
def test_an_empty_name_or_a_negative_seed(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    striped(0).save_to_disk(str(tmp_path / "x"))
    with pytest.raises(SystemExit) as end:
        main(["audit", *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_against_without_a_common_class_before_an_image_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    other = striped(0).cast_column("label", datasets.ClassLabel(names=["x", "y"]))
    monkeypatch.setattr("lbgen_hf.evaluation.audit.auditing.collect", lambda *_, **__: pytest.fail("it is read"))
    with pytest.raises(UserError, match="no class in common"):
        audit(striped(0), against=[striped(0), other])


def test_against_without_a_common_class_where_only_reading_tells() -> None:
    labels = ["x" if label else "y" for label in striped(0)["label"]]
    other = striped(0).remove_columns("label").add_column("label", labels)
    with pytest.raises(UserError, match="no class in common"):
        audit(striped(0), against=other)


def test_against_says_what_got_worse_and_in_which_classes() -> None:
    (comparison,) = audit(striped(100), against=striped(0)).comparisons
    changes = {change.name: change for change in comparison.attributes}
    assert changes["brightness"].word == "worse"
    assert changes["brightness"].change == pytest.approx(1, abs=0.1)
    assert [change.word for change in comparison.classes["brightness"]] == ["worse", "worse"]
    assert changes["file_size"].word == "same"
    assert comparison.images_per_class == {"bright": 30, "dim": 30}


def test_against_itself_nothing_changes() -> None:
    (comparison,) = audit(striped(50), against=[striped(50)]).comparisons
    assert all(change.word == "same" for change in comparison.attributes)


def test_near_duplicates_are_counted_in_and_across_classes() -> None:
    none = audit(striped(0)).near_duplicates
    assert len(none.pairs) == 0
    data = striped(0, repeats=2)
    labels = data["label"]
    labels = [labels[0], 1 - labels[1], *labels[2:]]
    images = data.cast_column("image", datasets.Image(decode=False))["image"]
    twice = as_dataset([image["bytes"] for image in images], labels, ["a", "b"])
    found = audit(twice)
    assert len(found.near_duplicates.pairs) == 60
    assert found.near_duplicates.across_classes(found.sample.labels) == 1
    assert found.near_duplicates.of_classes(found.sample.labels, 2).sum() == 59


def test_distance_within_a_class_against_the_set() -> None:
    """Vectors whose classes are one point, or of which classes say nothing."""
    from lbgen_hf.evaluation.audit.within_class import measure_diversity

    rng = np.random.default_rng(0)
    labels = np.arange(2000) % 4
    alike = measure_diversity(labels[:, None] * np.ones((1, 3)), labels, 4)
    assert (alike.mean, alike.interval) == (0, (0, 0))
    unrelated = measure_diversity(rng.normal(size=(2000, 5)), labels, 4)
    assert unrelated.mean == pytest.approx(1, abs=0.01)
    # Two pairs of classes at 0 and 2: any two images differ by 2 (1 + 1) on average, two of a class by 2, and of the
    # pairs of the set a fifth more than those of unlike classes are within a class.
    apart = 2 * (labels[:, None] % 2)
    half = measure_diversity(rng.normal(size=(2000, 1)) + apart, labels, 4)
    assert half.mean == pytest.approx(np.sqrt(1 / (1 + 4 / 3)), abs=0.03)
    assert half.interval[0] < half.mean < half.interval[1]
