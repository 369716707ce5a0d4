"""Features of a model: the background is what the probe sees, and nothing else tells it the class."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from worlds import biaslab_dataset, measure, planted_scenes

from lbgen_hf import UserError, audit
from lbgen_hf.biaslab.scenes import BACKGROUND_NAMES
from lbgen_hf.cli import main
from lbgen_hf.evaluation.audit.collecting import Sample
from lbgen_hf.evaluation.audit.comparing import compare
from lbgen_hf.evaluation.audit.findings import Finding, examine_sample
from lbgen_hf.evaluation.audit.model_features import (
    ImageModel,
    add_features,
    background_squares,
    load_model,
    predict_from_background,
)

WORDS = tuple(name for name in BACKGROUND_NAMES if name)


@pytest.fixture(scope="module")
def tiny_clip() -> ImageModel:
    return load_model("lbgen-tiny", WORDS)


@pytest.fixture(scope="module")
def looked_at(worlds: dict[str | None, Sample], tiny_clip: ImageModel) -> dict[str | None, Sample]:
    return {axis: add_features(sample, tiny_clip) for axis, sample in worlds.items()}


def examined(sample: Sample) -> dict[str, Finding]:
    return {finding.attribute.name: finding for finding in examine_sample(sample, resamples=200)}


def test_a_planted_background_is_read_by_the_probe_and_by_words(looked_at: dict[str | None, Sample]) -> None:
    biased, unbiased = examined(looked_at["backgrounds"]), examined(looked_at[None])
    for name in ("background_features", "nearest_word"):
        assert biased[name].relation.score > 0.3 + unbiased[name].relation.score
    assert biased["nearest_word"].attribute.axis == "words"


@pytest.mark.parametrize("axis", [None, "places", "textures"])
def test_the_probe_reads_nothing_of_the_object(looked_at: dict[str | None, Sample], axis: str | None) -> None:
    finding = examined(looked_at[axis])["background_features"]
    assert abs(finding.relation.score) < 0.05
    assert finding.relation.p_value > 0.05


def test_the_nearest_word_is_the_backgrounds(looked_at: dict[str | None, Sample], tiny_clip: ImageModel) -> None:
    scenes = planted_scenes(320, "backgrounds", 0.9)
    named = scenes.backgrounds.numpy() > 0
    found = looked_at["backgrounds"].values["nearest_word"][:, 0]
    # Its CLIP has read captions that name the object too; of words alone it takes the sea for the sky.
    assert np.mean(found[named] == scenes.backgrounds.numpy()[named] - 1) > 0.6  # chance: 1/8


def test_half_of_each_class_is_measured_and_the_other_half_is_fitted(looked_at: dict[str | None, Sample]) -> None:
    sample = looked_at["backgrounds"]
    has = np.isfinite(sample.background).all(1)
    measured = np.isfinite(predict_from_background(sample)[:, 0])
    assert not measured[~has].any()
    of_class = np.bincount(sample.labels[has], minlength=16)
    of_measured = np.bincount(sample.labels[measured], minlength=16)
    assert np.all((of_measured == of_class // 2) | (of_measured == (of_class + 1) // 2))
    assert measured.sum() == has.sum() // 2


def test_a_probe_of_noise_gives_no_alarm() -> None:
    """Were an image both fitted and measured, the probe would know all labels of these."""
    sample = measure(biaslab_dataset(160))
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(10):
        noise = rng.normal(size=(160, 64)).astype(np.float16)
        found = examined(dataclasses.replace(sample, background=noise))
        p_values.append(found["background_features"].relation.p_value)
    assert np.mean(p_values) > 0.25


def test_the_square_is_background() -> None:
    blue, red = np.array([30, 60, 200], np.uint8), np.array([220, 40, 30], np.uint8)
    images = []
    for top, left in ((40, 10), (80, 110), (8, 60)):
        pixels = np.tile(blue, (128, 160, 1))
        pixels[top : top + 36, left : left + 40] = red
        images.append(Image.fromarray(pixels))
    for square in background_squares(images):
        assert square.size == (40, 32)
        assert np.all(np.asarray(square) == blue)


def test_an_object_that_leaves_no_room_has_no_background() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[8:56, 8:56] = 255
    assert background_squares([Image.fromarray(pixels)]) == [None]
    flat = Image.new("RGB", (64, 64), "teal")
    assert np.all(np.asarray(background_squares([flat])[0]) == np.asarray(flat)[0, 0])


def test_command_line_words_and_distances(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    biaslab_dataset(160, "backgrounds", 0.9).to_parquet(str(tmp_path / "a.parquet"))
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    data, words, out = (str(tmp_path / name) for name in ("a.parquet", "words.txt", "out"))
    with pytest.raises(SystemExit) as end:
        main(["audit", data, "--out", out, "--features", "lbgen-tiny", "--words", words])
    assert not end.value.code
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    axes = {entry["name"]: entry["axis"] for entry in found["attributes"]}
    assert (axes["background_features"], axes["nearest_word"]) == ("features", "words")
    assert "nearest_word" in printed
    assert "features: " in printed  # the distance within a class is that of CLIP's features
    page = (tmp_path / "out" / "index.html").read_text()
    assert any(f"the typical value, {word}" in page for word in WORDS)


def test_two_sets_are_compared_by_the_probe_and_by_words(looked_at: dict[str | None, Sample]) -> None:
    comparison = compare(looked_at["backgrounds"], looked_at[None], resamples=200)
    changes = {change.name: change for change in comparison.attributes}
    assert changes["background_features"].word == changes["nearest_word"].word == "worse"


def test_a_timm_model_is_probed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", pretrained_cfg_overlay={"input_size": (3, 64, 64)})
    save_for_hf(model, tmp_path / "model", safe_serialization=True)
    found = audit(biaslab_dataset(160, "backgrounds", 0.9), features=str(tmp_path / "model"))
    names = [finding.attribute.name for finding in found.findings]
    assert "background_features" in names
    assert found.sample.features.shape == (160, model.num_features)
    with pytest.raises(UserError, match="is none that open_clip knows"):
        load_model(str(tmp_path / "model"), WORDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": WORDS}, "--words needs --features"),
        ({"words": ("sky",), "features": "lbgen-tiny"}, "two words or more"),
        ({"features": "no-such-folder/no-such-model/x"}, "no checkpoint 'no-such-folder"),
    ],
)
def test_bad_input(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        audit(biaslab_dataset(160), **options)
