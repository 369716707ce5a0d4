"""The downstream test: its scenes are what they say, and a classifier learns the shortcut it is offered."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import ttest_1samp

from lbgen_hf.biaslab.downstream import (
    evaluate_training_set,
    make_test_sets,
    mean_over_seeds,
    train_classifier,
    with_context_of,
)
from lbgen_hf.biaslab.scenes import CLASSES, own_attributes, render, sample_scenes
from lbgen_hf.errors import UserError


def test_contexts_are_those_of_the_named_classes():
    scenes = sample_scenes(50, seed=1)
    moved = with_context_of(scenes, (scenes.labels + 1) % len(CLASSES))
    for i, label in enumerate(scenes.labels.tolist()):
        texture, background, place = own_attributes((label + 1) % len(CLASSES))
        assert (moved.textures[i], moved.backgrounds[i], moved.places[i]) == (texture, background, place)
    assert torch.equal(moved.shapes, scenes.shapes)


def test_no_scene_of_cue_conflict_has_its_own_context():
    test_sets = make_test_sets(60)
    assert set(test_sets) == {"unbiased", "cue_conflict", "plain", "own_context"}
    conflict = test_sets["cue_conflict"]
    assert (conflict.labels != conflict.context_labels).all()
    assert torch.equal(conflict.labels, test_sets["plain"].labels)
    assert not torch.equal(conflict.images, test_sets["own_context"].images)


def test_a_classifier_takes_the_shortcut_that_biased_scenes_offer():
    """Two classes, fully biased: on cue conflicts it says the context's class; trained without bias it does not."""
    labels = torch.arange(2).repeat(80)
    test_sets = make_test_sets(400, seed=5)
    two = {name: s for name, s in test_sets.items() if name in ("own_context", "cue_conflict")}
    biased = with_context_of(sample_scenes(160, seed=3, labels=labels), labels)
    result = evaluate_training_set(render(biased).images, labels, two, seeds=range(1), steps=60)
    among = two["cue_conflict"].labels < 2
    told = two["cue_conflict"].context_labels[among] < 2
    assert result["own_context"][0, two["own_context"].labels < 2].double().mean() > 0.95
    assert result["says_context"][0, among][told].double().mean() > 0.6


def test_training_is_a_function_of_the_seed():
    scenes = sample_scenes(64, seed=2)
    images = render(scenes).images
    weights = [train_classifier(images, scenes.labels, 16, seed=s, steps=3)[0].weight for s in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(("of_seeds", "of_scenes"), [(0.05, 0.0), (0.0, 0.4), (0.02, 0.3)])
def test_intervals_hold_the_mean_of_other_seeds_and_other_scenes(of_seeds: float, of_scenes: float):
    generator = torch.Generator().manual_seed(0)

    def holds_it() -> bool:
        seeds = of_seeds * torch.randn(3, 1, generator=generator)
        scenes = of_scenes * torch.randn(1, 400, generator=generator)
        noise = 0.1 * torch.randn(3, 400, generator=generator)
        _, low, high = mean_over_seeds(0.4 + seeds + scenes + noise)
        return low < 0.4 < high

    assert sum(holds_it() for _ in range(400)) >= 0.93 * 400


def test_an_interval_of_seeds_alone_is_students():
    values = torch.tensor([0.223, 0.165, 0.197])
    found = mean_over_seeds(values[:, None].expand(3, 50))
    expected = ttest_1samp(values.double(), 0).confidence_interval()
    assert found[1:] == pytest.approx(expected)


def test_the_script_compares_each_set_of_images_with_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "training" / "biaslab")
    import measure_downstream

    monkeypatch.setattr(measure_downstream, "make_test_sets", lambda: make_test_sets(30))
    labels = torch.arange(len(CLASSES)).repeat_interleave(2)
    for seed, name in enumerate(("base", "lora")):
        images = (render(sample_scenes(len(labels), seed=seed, labels=labels)).images * 255).round().to(torch.uint8)
        save_file({"images": images, "labels": labels}, tmp_path / f"{name}.safetensors")
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("base", "lora")]
    output = tmp_path / "out.json"
    measure_downstream.main(
        measure_downstream.make_parser().parse_args(
            [*paths, "--num_seeds", "2", "--steps", "20", "--output", str(output)]
        )
    )
    rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert {row["trained_on"] for row in rows} == {"base", "lora", "biased scenes", "unbiased scenes"}
    accuracy = {(row["trained_on"], row["tested_on"]): row["accuracy"][0] for row in rows}
    for row in rows:
        for other, (difference, low, high) in row["above"].items():
            expected = accuracy[row["trained_on"], row["tested_on"]] - accuracy[other, row["tested_on"]]
            assert difference == pytest.approx(expected)
            assert low <= high
    assert set(next(row for row in rows if row["trained_on"] == "lora")["above"]) == {"base"}

    for wrong, message in (
        (["--num_seeds", "1"], "--num_seeds"),
        (["--steps", "0"], "--steps"),
        (["--output", str(tmp_path)], "it is a folder"),
        (paths, "several files have one name"),
    ):
        arguments = ["--output", str(output), *paths, *wrong]
        with pytest.raises(UserError, match=message):
            measure_downstream.main(measure_downstream.make_parser().parse_args(arguments))

    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"bad\.safetensors is no file that measure_bias\.py"):
        measure_downstream.read_images(tmp_path / "bad.safetensors")
