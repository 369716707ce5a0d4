"""The measurement of bias on worlds whose bias is known."""

import dataclasses
import math

import pytest
import torch

from lbgen_hf.biaslab.measure import (
    Estimate,
    agreement,
    blind_of,
    by_class,
    by_value,
    compare,
    format_comparison,
    format_interval,
    format_side_by_side,
    judge_images,
    measure,
    measure_blind,
    sample_images,
)
from lbgen_hf.biaslab.scenes import CLASSES, own_attributes, sample_scenes

N = 40


def true_judge(images):
    """Reads images that carry their own truth: pixel i of channel 0 is the id of attribute i."""
    sizes = {"shape": 25, "background": 9, "texture": 9, "place": 3}
    return {
        key: torch.nn.functional.one_hot(images[:, 0, 0, i].long(), size).float()
        for i, (key, size) in enumerate(sizes.items())
    }


def images_of_world(bias: float, seed: int = 0, num: int = N) -> torch.Tensor:
    labels = torch.arange(len(CLASSES)).repeat_interleave(num)
    scenes = sample_scenes(len(labels), bias=bias, seed=seed, labels=labels)
    images = torch.zeros(len(labels), 3, 4, 4)
    for i, ids in enumerate((scenes.shapes, scenes.backgrounds, scenes.textures, scenes.places)):
        images[:, 0, 0, i] = ids
    return images.view(len(CLASSES), num, 3, 4, 4)


def metrics(bias: float, **options):
    return measure(judge_images(images_of_world(bias, **options), CLASSES, true_judge), replicates=300)


def true_information(bias: float, num_values: int, own: list[int]) -> float:
    """I(class; value) of the biased mixture in closed form."""
    joint = torch.full((len(own), num_values), (1 - bias) / num_values, dtype=torch.float64)
    joint[torch.arange(len(own)), torch.tensor(own)] += bias
    marginal = joint.mean(0)
    return (joint * (joint / marginal).log()).sum(1).mean().item()


def test_mutual_information_is_the_known_worlds():
    measured = metrics(0.7, num=400)
    for column, (name, size) in enumerate([("texture", 9), ("background", 9), ("place", 3)]):
        own = [own_attributes(i)[column] for i in range(len(CLASSES))]
        truth = true_information(0.7, size, own)
        low, high = measured[f"mi_{name}"].interval
        assert low - 0.01 < truth < high + 0.01
        assert measured[f"mi_{name}"].value == pytest.approx(truth, rel=0.06)
        assert measured[f"own_{name}"].value == pytest.approx(0.7 + 0.3 / size, abs=0.02)


def test_an_unbiased_world_measures_zero():
    """At 100 images a class the plug-in estimate would say 0.04 nats of backgrounds; the correction takes it out."""
    measured = metrics(0.0, num=100)
    for name in ("background", "texture", "place"):
        assert abs(measured[f"mi_{name}"].value) < 0.02
    assert measured["commonest_background"].value < 0.2
    assert measured["class_accuracy"].value == 1


def test_intervals_cover_and_tell_worlds_apart():
    """Over repeated samples of one world, 95 % intervals hold the mean of all samples most of the time."""
    samples = [metrics(0.6, seed=seed) for seed in range(20)]
    for name in ("mi_background", "mi_place", "own_texture"):
        centre = sum(d[name].value for d in samples) / len(samples)
        held = sum(d[name].interval[0] <= centre <= d[name].interval[1] for d in samples)
        assert held >= 16
    rows = {row["name"]: row for row in compare(samples[0], metrics(0.3))}
    assert rows["mi_background"]["relative"][2] < -0.4
    assert rows["class_accuracy"]["change"] == (0, 0, 0)


def test_no_interval_of_a_share_leaves_0_to_1():
    """One image of all is marked, and shows its class's own value: resamples without it pull the others beyond one."""
    scenes = images_of_world(0.0)
    plain = {name: torch.zeros(len(CLASSES), N, dtype=torch.long) for name in ("background", "texture", "place")}
    plain["texture"][0, 0] = own_attributes(0)[0]
    judged = judge_images(scenes, CLASSES, true_judge)
    measured = measure(dataclasses.replace(judged, attributes=plain))
    own = measured["own_of_marked_texture"]
    assert own.value == 1
    assert own.replicates.max() > 1.2
    assert own.interval[1] == 1
    accuracy = measured["class_accuracy"]
    assert accuracy.triple == (1, 1, 1)
    change = {row["name"]: row["change"] for row in compare(measured, measured)}
    assert change["own_of_marked_texture"] == (0, 0, 0)


def test_wrong_classes_are_counted():
    images = images_of_world(0.0)
    images[:4] = images[4:8].clone()  # four classes show another's shape
    measured = measure(judge_images(images, CLASSES, true_judge), replicates=10)
    assert measured["class_accuracy"].value == 0.75


def test_quality_distance_and_colours():
    images = images_of_world(0.0)
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(len(CLASSES), N, 5, generator=generator), dim=-1)
    rows = iter(features.flatten(0, 1).split(100))
    texts = torch.nn.functional.normalize(torch.randn(len(CLASSES), 5, generator=generator), dim=-1)
    read: list[str] = []

    def text_features(names: list[str]) -> torch.Tensor:
        read.extend(names)
        return texts

    judgements = judge_images(
        images, CLASSES, true_judge, lambda x: next(rows), lambda x: x[:, 0, 0, 1] / 2 + 1, text_features
    )
    measured = measure(judgements, replicates=200)
    assert read == [f"photo of {name}" for name in CLASSES]
    cosines = [(features[i] @ texts[i]).mean().item() for i in range(len(CLASSES))]
    assert measured["clip_alignment"].value == pytest.approx(sum(cosines) / len(CLASSES), abs=1e-5)
    pairs = 1 - features @ features.mT
    expected = pairs.sum((1, 2)) / (N * (N - 1))
    assert measured["distance_within_class"].value == pytest.approx(expected.mean().item(), abs=1e-5)
    low, high = measured["distance_within_class"].interval
    assert low < expected.mean() < high
    assert measured["quality"].value == pytest.approx(images[:, :, 0, 0, 1].mean().item() / 2 + 1, abs=1e-5)
    spread = images.mean((-2, -1)).flatten(0, 1).var(0, unbiased=False).mean().sqrt()
    assert measured["colour_spread"].value == pytest.approx(spread.item(), abs=1e-5)


def test_table_shows_base_and_tuned():
    table = format_comparison(compare(metrics(0.6), metrics(0.3)))
    assert "| mi background | " in table
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_sampling_asks_each_name_with_one_seed():
    calls = []

    class Pipe:
        def __call__(self, name, **kwargs):
            calls.append((name, kwargs))
            return type("Output", (), {"images": torch.full((kwargs["images_per_class"], 3, 2, 2), 0.5)})

    images = sample_images(Pipe(), ["star", "bow"], 3, seed=7, num_inference_steps=4)
    assert images.shape == (2, 3, 3, 2, 2)
    expected = {"images_per_class": 3, "seed": 7, "output_type": "pt", "num_inference_steps": 4}
    assert calls == [("star", expected), ("bow", expected)]


def grey_world(share: float, seed: int = 0) -> torch.Tensor:
    """A biased world of which some images, blind to their class, have a plain background instead."""
    images = images_of_world(0.8, num=400)
    chosen = torch.rand(images.shape[:2], generator=torch.Generator().manual_seed(seed)) < share
    images[..., 0, 0, 1][chosen] = 0
    return images


def test_a_collapse_to_plain_lowers_information_but_not_what_stands_beside_it():
    """Making images plain blind to their class is no debiasing, and each of the metrics says so."""
    base = judge_images(images_of_world(0.8, num=400), CLASSES, true_judge)
    grey = judge_images(grey_world(0.5), CLASSES, true_judge)
    before, after = measure(base, replicates=100), measure(grey, replicates=100)
    assert after["mi_background"].value < 0.65 * before["mi_background"].value
    assert after["mi_marked_background"].value == pytest.approx(before["mi_marked_background"].value, rel=0.03)
    assert after["own_of_marked_background"].value == pytest.approx(before["own_of_marked_background"].value, abs=0.02)
    assert after["entropy_background"].value < 0.85 * before["entropy_background"].value
    assert after["plain_background"].value == pytest.approx(0.51, abs=0.02)
    assert abs(after["mi_of_plain_background"].value) < 0.01
    blind = measure_blind(base, grey, replicates=100)
    assert blind["mi_blind_background"].value == pytest.approx(after["mi_background"].value, rel=0.03)
    assert blind["mi_blind_texture"].value == pytest.approx(before["mi_texture"].value)
    rows = {row["name"]: row for row in compare(blind_of(before), blind)}
    assert rows["mi_blind_background"]["base"] == before["mi_background"].triple
    assert rows["mi_blind_background"]["tuned"] == blind["mi_blind_background"].triple
    assert after["mi_place"].value == before["mi_place"].value


def test_plainness_that_depends_on_the_class_is_information():
    images = images_of_world(0.0, num=200)
    images[:8, :, 0, 0, 1] = 0  # the first half of the classes, and no other, is plain
    images[8:, :, 0, 0, 1] = images[8:, :, 0, 0, 1].clamp(min=1)
    metrics = measure(judge_images(images, CLASSES, true_judge), replicates=10)
    assert metrics["mi_of_plain_background"].value == pytest.approx(math.log(2), abs=0.01)


@pytest.mark.parametrize(("share_plain", "is_shown"), [(0.9, True), (1.0, False)])
def test_tables_say_nothing_of_marked_images_where_nearly_all_are_plain(share_plain: float, is_shown: bool):
    """Zero information among no images would read as no bias."""
    base = measure(judge_images(images_of_world(0.8, num=400), CLASSES, true_judge), replicates=50)
    grey = measure(judge_images(grey_world(share_plain), CLASSES, true_judge), replicates=50)
    metric = "mi_marked_background"
    shown = format_interval(grey[metric].triple) if is_shown else "–"
    assert f"| {shown} |\n" in format_side_by_side({"base": base, "grey": grey}, [metric]) + "\n"
    line = next(line for line in format_comparison(compare(base, grey)).splitlines() if "mi marked background" in line)
    assert line.startswith(f"| mi marked background | {format_interval(base[metric].triple)} | {shown} | ")
    assert line.endswith("| – |") != is_shown


def test_rows_by_class_and_by_value_add_up_to_the_information():
    judgements = judge_images(images_of_world(0.6, num=400), CLASSES, true_judge)
    plug_in = true_information(0.6, 9, [own_attributes(i)[1] for i in range(len(CLASSES))])
    rows = by_class(judgements, CLASSES, "background")
    assert [row["class"] for row in rows] == CLASSES
    assert sum(row["information"] for row in rows) / len(rows) == pytest.approx(plug_in, abs=0.03)
    values = by_value(judgements, "background")
    assert sum(row["share"] for row in values) == pytest.approx(1)
    total = sum(row["share"] * row["information"] for row in values)
    assert total == pytest.approx(sum(row["information"] for row in rows) / len(rows))
    assert all(row["own"] == pytest.approx(0.64, abs=0.08) and row["accuracy"] == 1 for row in rows)


def test_agreement_counts_equal_values():
    seen = {"shape": torch.tensor([1, 2, 3, 4])}
    assert agreement(seen, {"shape": torch.tensor([1, 2, 3, 5])}) == {"shape": 0.75}


def test_there_is_no_relative_change_of_what_may_be_zero():
    def estimate(value: float) -> Estimate:
        return Estimate(value, torch.linspace(value - 0.1, value + 0.1, 101))

    unclear, clear = compare({"a": estimate(0.05), "b": estimate(0.5)}, {"a": estimate(0.3), "b": estimate(0.3)})
    assert math.isnan(unclear["relative"][0])
    assert clear["relative"][0] == pytest.approx(-0.4)
    assert format_comparison([unclear, clear]).count("| – |") == 1
