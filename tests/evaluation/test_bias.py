"""The three measures of bias, against published counts and accuracies."""

import numpy as np
import pytest

from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.bias import context_bias_estimates, texture_inclination_estimates
from lbgen_hf.metrics import background_gap, context_bias, texture_inclination

# Decisions by shape, by texture, by neither, and TI in %, counted in rgeirhos/texture-vs-shape, raw-data.
DECISIONS = {
    "resnet50": (162, 572, 466, 77.9),
    "alexnet": (182, 537, 481, 74.7),
    "densenet121": (163, 597, 440, 78.6),
    "resnet101": (180, 509, 511, 73.9),
    "resnet152": (196, 569, 435, 74.4),
    "squeezenet1_1": (133, 597, 470, 81.8),
    "vgg16": (84, 828, 288, 90.8),
    "oidv2-resnet101": (98, 402, 700, 80.4),
    "resnet50-stylised": (586, 141, 473, 19.4),
}
# Accuracies of P_0 to P_3, CB_avg with its interval and CB over k = 1, 2: of the predictions in
# visinf/benchmarking-synthetic-clones. P_3 has 21 images.
FOCUS = {
    "resnet50": (72.4, 44.4, 28.0, 42.9, 53.0, (43.1, 63.6), 50.0),
    "vit-b": (74.6, 50.2, 37.1, 66.7, 68.8, (59.9, 77.2), 58.5),
    "syn_clone": (65.4, 40.7, 29.1, 38.1, 55.0, (45.2, 65.0), 53.4),
    "synclr": (76.4, 53.5, 44.7, 57.1, 67.7, (58.5, 76.6), 64.2),
    "CLIP": (80.2, 61.6, 50.6, 47.6, 66.4, (58.2, 75.3), 69.9),
}


def decisions(shape: int, texture: int, other: int, no_conflict: int = 0) -> dict:
    """Images of a shape of class 3 and a texture of class 5 (or none of its own) with so many decisions for each."""
    return {
        "predictions": [3] * shape + [5] * texture + [7] * other + [3] * no_conflict,
        "references": [3] * (shape + texture + other + no_conflict),
        "textures": [5] * (shape + texture + other) + [3] * no_conflict,
    }


def partitions(sizes: tuple[int, ...], accuracies: tuple[float, ...]) -> dict:
    """Images of one class with the given accuracy in % in each P_k."""
    right = [round(n * accuracy / 100) for n, accuracy in zip(sizes, accuracies, strict=True)]
    return {
        "predictions": np.concatenate([np.arange(n) >= r for n, r in zip(sizes, right, strict=True)]).astype(int),
        "references": np.zeros(sum(sizes), dtype=int),
        "num_uncommon": np.repeat(range(4), sizes),
    }


@pytest.mark.parametrize("network", DECISIONS)
def test_published_decisions(network: str) -> None:
    shape, texture, other, expected = DECISIONS[network]
    result = texture_inclination(**decisions(shape, texture, other, no_conflict=80))
    assert round(result["texture_inclination"], 1) == expected
    assert (result["shape_decisions"], result["texture_decisions"], result["other_decisions"]) == (
        shape,
        texture,
        other,
    )
    assert result["no_conflict"] == 80
    low, high = result["texture_inclination_interval"]
    # The delta method: a share p of the decided images.
    p, decided = expected / 100, shape + texture
    assert high - low == pytest.approx(2 * 196 * np.sqrt(p * (1 - p) / decided), rel=0.12)
    assert low < expected < high


def test_texture_inclinations_of_two_networks_are_compared_on_the_same_images() -> None:
    options = {"n_resamples": 200, "seed": 1}
    a = texture_inclination_estimates(**decisions(100, 300, 50), **options)[0]["texture_inclination"]
    b = texture_inclination_estimates(**decisions(102, 298, 50), **options)[0]["texture_inclination"]
    assert (a - b).standard_error < a.standard_error / 4


@pytest.mark.parametrize("network", FOCUS)
def test_published_context_bias(network: str) -> None:
    *accuracies, cb_avg, interval, cb_12 = FOCUS[network]
    result = context_bias(**partitions((10_000, 8_000, 2_794, 21), accuracies))
    for k, accuracy in enumerate(accuracies):
        assert result[f"accuracy_p{k}"] == pytest.approx(accuracy, abs=0.05)
    assert result["cb_avg"] == pytest.approx(cb_avg, abs=0.11)  # the printed accuracies are rounded
    assert result["cb_12"] == pytest.approx(cb_12, abs=0.11)
    assert result["cb_avg_interval"] == pytest.approx(interval, abs=1.5)
    assert result["context_bias_interval"] == result["cb_avg_interval"]
    low, high = result["cb_12_interval"]
    assert high - low < (interval[1] - interval[0]) / 4
    assert [result[f"n_p{k}"] for k in range(4)] == [10_000, 8_000, 2_794, 21]


def test_context_bias_of_classes() -> None:
    """One class is always right, one never in P_1 to P_3; macro weighs them alike, whatever their numbers."""
    predictions = [0, 0, 0, 1] + [0, 0, 0, 9] * 3
    references = [0, 0, 0, 1] * 4
    result = context_bias(predictions, references, np.repeat(range(4), 4))
    assert result["cb_avg"] == pytest.approx(75)
    assert result["cb_macro"] == pytest.approx(50)


def test_background_gap() -> None:
    same, rand, original = [0] * 80 + [1] * 20, [0] * 60 + [1] * 40, [0] * 90 + [1] * 10
    names = np.repeat(["mixed_same", "mixed_rand", "original"], 100)
    result = background_gap(same + rand + original, [0] * 300, names)
    assert result["background_gap"] == pytest.approx(20)
    assert result["relative_gap"] == pytest.approx(100 * 20 / 90)
    assert (result["accuracy_mixed_same"], result["accuracy_mixed_rand"]) == pytest.approx((80, 60))
    low, high = result["background_gap_interval"]
    assert high - low == pytest.approx(2 * 196 * np.sqrt((0.8 * 0.2 + 0.6 * 0.4) / 100), rel=0.12)
    without = background_gap(same + rand, [0] * 200, names[:200])
    assert without["background_gap"] == pytest.approx(20)
    assert "relative_gap" not in without


def test_standard_error_of_imagenet_9s_gap() -> None:
    """0.84 points at 4,050 images a split and the benchmark's own 86.2 and 78.9."""
    right = [round(4050 * accuracy) for accuracy in (0.862, 0.789)]
    predictions = np.concatenate([np.arange(4050) >= r for r in right]).astype(int)
    names = np.repeat(["mixed_same", "mixed_rand"], 4050)
    low, high = background_gap(predictions, np.zeros(8100, dtype=int), names)["background_gap_interval"]
    assert (high - low) / (2 * 1.96) == pytest.approx(0.84, abs=0.05)


def test_a_gap_relative_to_no_right_answers_is_left_out() -> None:
    result = background_gap([0, 0, 1], [0, 1, 0], ["mixed_same", "mixed_rand", "original"])
    assert (result["background_gap"], result["accuracy_original"], result["n_original"]) == (100, 0, 1)
    assert not {"relative_gap", "relative_gap_interval"} & result.keys()


def test_estimates_of_what_is_undefined_are_nan_and_the_others_numbers() -> None:
    undefined, counts = texture_inclination_estimates([9, 9], [0, 0], [1, 1])
    assert np.isnan(undefined["texture_inclination"].value)
    assert counts["other_decisions"] == 2
    found, _ = context_bias_estimates([1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 2, 3])
    assert {name for name, estimate in found.items() if np.isnan(estimate.value)} == {"cb_avg", "cb_12", "cb_macro"}
    assert [found[f"accuracy_p{k}"].value for k in range(4)] == [0, 100, 100, 100]
    assert np.isnan([*found["cb_avg"].interval(), found["cb_avg"].standard_error]).all()
    assert np.isnan((found["cb_avg"] - found["accuracy_p1"]).value)


def test_undefined_metrics_are_errors() -> None:
    with pytest.raises(UserError, match="no image has a shape and a texture of different classes"):
        texture_inclination([0], [1], [1])
    with pytest.raises(UserError, match="none of 2 decisions"):
        texture_inclination([9, 9], [0, 0], [1, 1])
    with pytest.raises(UserError, match="P_0 1, P_1 1, P_2 0, P_3 1"):
        context_bias([0, 0, 0], [0, 0, 0], [0, 1, 3])
    with pytest.raises(UserError, match="none of 1 images of P_0"):
        context_bias([1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 2, 3])
    with pytest.raises(UserError, match="num_uncommon must be 0 to 3, got 4"):
        context_bias([0], [0], [4])
    with pytest.raises(UserError, match="found mixed_same 1, mixed_rand 0"):
        background_gap([0], [0], ["mixed_same"])
    with pytest.raises(UserError, match="unknown partition 'mixed_next'"):
        background_gap([0], [0], ["mixed_next"])


def test_malformed_columns() -> None:
    with pytest.raises(UserError, match="lengths differ: predictions 2, references 1, textures 2"):
        texture_inclination([0, 1], [0], [1, 0])
    with pytest.raises(UserError, match="predictions must be integers"):
        texture_inclination([0.5], [0], [1])
    with pytest.raises(UserError, match="predictions must hold one integer an image"):
        texture_inclination([], [], [])
    with pytest.raises(UserError, match="confidence_level must be"):
        texture_inclination([0], [0], [1], confidence_level=1.5)
