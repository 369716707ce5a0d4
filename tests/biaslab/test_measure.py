"""The measurement of bias on worlds whose bias is known."""

import math

import pytest
import torch

from lbgen_hf.biaslab.measure import compare, draw_pictures, format_comparison, look_at, measure, mutual_information
from lbgen_hf.biaslab.scenes import CLASSES, own_attributes, sample_scenes

N = 40


def true_judge(images):
    """Reads pictures that carry their own truth: pixel i of channel 0 is the id of attribute i."""
    sizes = {"shape": 25, "background": 9, "texture": 9, "place": 3}
    return {
        key: torch.nn.functional.one_hot(images[:, 0, 0, i].long(), size).float()
        for i, (key, size) in enumerate(sizes.items())
    }


def pictures_of_world(bias: float, seed: int = 0, num: int = N) -> torch.Tensor:
    labels = torch.arange(len(CLASSES)).repeat_interleave(num)
    scenes = sample_scenes(len(labels), bias=bias, seed=seed, labels=labels)
    pictures = torch.zeros(len(labels), 3, 4, 4)
    for i, ids in enumerate((scenes.shapes, scenes.backgrounds, scenes.textures, scenes.places)):
        pictures[:, 0, 0, i] = ids
    return pictures.view(len(CLASSES), num, 3, 4, 4)


def figures(bias: float, **options):
    return measure(look_at(pictures_of_world(bias, **options), CLASSES, true_judge), replicates=300)


def true_information(bias: float, num_values: int, own: list[int]) -> float:
    """I(class; value) of the biased mixture in closed form."""
    joint = torch.full((len(own), num_values), (1 - bias) / num_values, dtype=torch.float64)
    joint[torch.arange(len(own)), torch.tensor(own)] += bias
    marginal = joint.mean(0)
    return (joint * (joint / marginal).log()).sum(1).mean().item()


def test_mutual_information_is_the_known_worlds():
    measured = figures(0.7, num=400)
    for column, (name, size) in enumerate([("texture", 9), ("background", 9), ("place", 3)]):
        own = [own_attributes(i)[column] for i in range(len(CLASSES))]
        truth = true_information(0.7, size, own)
        low, high = measured[f"mi_{name}"].interval
        assert low - 0.01 < truth < high + 0.01
        assert measured[f"mi_{name}"].value == pytest.approx(truth, rel=0.06)
        assert measured[f"own_{name}"].value == pytest.approx(0.7 + 0.3 / size, abs=0.02)


def test_an_unbiased_world_measures_zero():
    """At 100 pictures a class the plug-in estimate would say 0.04 nats of backgrounds; the correction takes it out."""
    measured = figures(0.0, num=100)
    for name in ("background", "texture", "place"):
        assert abs(measured[f"mi_{name}"].value) < 0.02
    assert measured["commonest_background"].value < 0.2
    assert measured["class_accuracy"].value == 1


def test_miller_madow_by_hand():
    table = torch.tensor([[3.0, 1.0], [0.0, 4.0]])
    plug_in = sum(c / 8 * math.log(c / 8 / (0.5 * m / 8)) for c, m in [(3, 3), (1, 5), (4, 5)])
    correction = ((2 - 1) + (2 - 1) - (3 - 1)) / 16
    assert mutual_information(table).item() == pytest.approx(plug_in + correction, abs=1e-6)


def test_intervals_cover_and_tell_worlds_apart():
    """Over repeated draws of one world, 95 % intervals hold the mean of all draws most of the time."""
    draws = [figures(0.6, seed=seed) for seed in range(20)]
    for name in ("mi_background", "mi_place", "own_texture"):
        centre = sum(d[name].value for d in draws) / len(draws)
        held = sum(d[name].interval[0] <= centre <= d[name].interval[1] for d in draws)
        assert held >= 16
    rows = {row["name"]: row for row in compare(draws[0], figures(0.3))}
    assert rows["mi_background"]["relative"][2] < -0.4
    assert rows["class_accuracy"]["change"] == (0, 0, 0)


def test_wrong_classes_are_counted():
    pictures = pictures_of_world(0.0)
    pictures[:4] = pictures[4:8].clone()  # four classes draw another's shape
    measured = measure(look_at(pictures, CLASSES, true_judge), replicates=10)
    assert measured["class_accuracy"].value == 0.75


def test_quality_distance_and_colours():
    pictures = pictures_of_world(0.0)
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(len(CLASSES), N, 5, generator=generator), dim=-1)
    rows = iter(features.flatten(0, 1).split(100))
    sight = look_at(pictures, CLASSES, true_judge, lambda x: next(rows), lambda x: x[:, 0, 0, 1] / 2 + 1)
    measured = measure(sight, replicates=200)
    pairs = 1 - features @ features.mT
    expected = pairs.sum((1, 2)) / (N * (N - 1))
    assert measured["distance_within_class"].value == pytest.approx(expected.mean().item(), abs=1e-5)
    low, high = measured["distance_within_class"].interval
    assert low < expected.mean() < high
    assert measured["quality"].value == pytest.approx(pictures[:, :, 0, 0, 1].mean().item() / 2 + 1, abs=1e-5)
    spread = pictures.mean((-2, -1)).flatten(0, 1).var(0, unbiased=False).mean().sqrt()
    assert measured["colour_spread"].value == pytest.approx(spread.item(), abs=1e-5)


def test_table_shows_base_and_tuned():
    table = format_comparison(compare(figures(0.6), figures(0.3)))
    assert "| mi background | " in table
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_drawing_asks_each_name_with_one_seed():
    calls = []

    class Pipe:
        def __call__(self, name, **kwargs):
            calls.append((name, kwargs))
            return type("Output", (), {"images": torch.full((kwargs["images_per_class"], 3, 2, 2), 0.5)})

    pictures = draw_pictures(Pipe(), ["star", "bow"], 3, seed=7, num_inference_steps=4)
    assert pictures.shape == (2, 3, 3, 2, 2)
    expected = {"images_per_class": 3, "seed": 7, "output_type": "pt", "num_inference_steps": 4}
    assert calls == [("star", expected), ("bow", expected)]
