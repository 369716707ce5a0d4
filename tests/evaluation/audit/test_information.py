"""The score: against references, at no relation, at full dependence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import expected_mutual_information

from lbgen_hf.evaluation.audit.information import (
    class_information,
    count_table,
    entropy,
    entropy_given_label,
    equiprobable_cells,
    holm,
    num_cells,
    relate,
)


def random_labels(rng: np.random.Generator, num: int, num_classes: int, major: float | None = None) -> np.ndarray:
    """Every class at least 5 times; class 0 has the share `major`, or all are equally likely."""
    rest = rng.integers(1 if major else 0, num_classes, num)
    labels = np.where(rng.random(num) < major, 0, rest) if major else rest
    labels[: 5 * num_classes] = np.arange(5 * num_classes) % num_classes
    return rng.permutation(labels)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.integers(2, 8), st.integers(20, 300), st.integers(0, 2**31))
def test_plug_in_information_is_scikit_learns(num_classes: int, num_cells: int, num: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, cells = rng.integers(0, num_classes, num), rng.integers(0, num_cells, num)
    table = count_table(labels, cells, num_classes)
    share = table.sum(1) / num
    assert class_information(table) @ share == pytest.approx(mutual_info_score(labels, cells), abs=1e-9)


def test_score_is_the_adjusted_mutual_information_with_the_labels_entropy() -> None:
    """E[I] of the shuffles against scikit-learn's closed form."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 400)
    cells = np.where(rng.random(400) < 0.3, labels, rng.integers(0, 8, 400))
    table = count_table(labels, cells, 6)
    chance = expected_mutual_information(table, 400)
    label_entropy = entropy(table.sum(1))
    truth = (mutual_info_score(labels, cells) - chance) / (label_entropy - chance)
    assert relate(table, resamples=4000).score == pytest.approx(truth, abs=0.002)


def test_classes_add_up_to_the_information() -> None:
    rng = np.random.default_rng(1)
    labels = random_labels(rng, 500, 5, major=0.6)
    cells = np.where(rng.random(500) < 0.5, labels, rng.integers(0, 4, 500))
    relation = relate(count_table(labels, cells, 5))
    share = np.bincount(labels) / 500
    weight = -share * np.log(share)
    assert relation.classes @ weight / weight.sum() == pytest.approx(relation.score, abs=0.01)


@pytest.mark.parametrize("num_classes", [2, 12, 100])
@pytest.mark.parametrize("major", [None, 0.96])
def test_no_relation_scores_zero(num_classes: int, major: float | None) -> None:
    """The mean over datasets, which a plug-in estimate or a normal approximation misses by up to 0.2 here."""
    rng = np.random.default_rng(2)
    num = max(200, 10 * num_classes)
    scores = []
    for seed in range(30):
        labels = random_labels(rng, num, num_classes, major)
        table = count_table(labels, rng.integers(0, 16, num), num_classes)
        scores.append(relate(table, resamples=99, seed=seed).score)
    assert abs(np.mean(scores)) < 4 * np.std(scores) / np.sqrt(len(scores))
    assert abs(np.mean(scores)) < 0.01


def test_full_dependence_scores_one() -> None:
    labels = np.arange(60) % 6
    relation = relate(count_table(labels, labels, 6))
    assert relation.score == pytest.approx(1)
    assert relation.classes == pytest.approx(np.ones(6))
    assert relation.p_value == 0.001
    assert relation.interval == pytest.approx((1, 1))


def test_a_constant_attribute_scores_zero() -> None:
    relation = relate(np.array([[5], [7]]))
    assert (relation.score, relation.p_value) == (0, 1)


def test_the_interval_holds_the_truth() -> None:
    """A known joint distribution, sampled 60 times: about 95 % of the intervals hold its information."""
    rng = np.random.default_rng(3)
    conditional = 0.3 * rng.dirichlet(np.ones(16) / 2, 12) + 0.7 / 16
    truth = (conditional * np.log(conditional / conditional.mean(0))).sum() / 12 / np.log(12)
    held = 0
    for seed in range(60):
        low, high = relate(rng.multinomial(100, conditional), resamples=200, seed=seed).interval
        held += low <= truth <= high
    assert held >= 52  # 5 % of the time a right interval would do worse than 53


def test_p_values_are_uniform_where_there_is_no_relation() -> None:
    rng = np.random.default_rng(4)
    labels = random_labels(rng, 240, 3)
    p_values = []
    for seed in range(150):
        table = count_table(rng.permutation(labels), np.arange(240) % 8, 3)
        p_values.append(relate(table, resamples=99, seed=seed).p_value)
    assert 0.4 < np.mean(p_values) < 0.6
    assert np.mean(np.array(p_values) <= 0.1) < 0.18


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.sampled_from([4, 8, 16]), st.integers(16, 400), st.integers(0, 2**31))
def test_cells_hold_equally_many_points(dimensions: int, cells: int, num: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(num, dimensions))
    counts = np.bincount(equiprobable_cells(values, cells), minlength=cells)
    assert counts.max() - counts.min() <= np.log2(cells)


def test_cells_in_one_dimension_are_quantile_bins() -> None:
    values = np.random.default_rng(5).normal(size=(64, 1))
    ids = equiprobable_cells(values, 8)
    ranks = values[:, 0].argsort().argsort()
    for cell in range(8):
        inside = np.sort(ranks[ids == cell])
        assert np.array_equal(inside, np.arange(inside[0], inside[0] + 8))


def test_equal_values_share_a_cell() -> None:
    values = np.array([0.0] * 30 + [1.0] * 5 + [2.0] * 3)[:, None]
    ids = equiprobable_cells(values, 8)
    assert len({(value, cell) for value, cell in zip(values[:, 0], ids, strict=True)}) == 3


def test_fewer_cells_for_few_images() -> None:
    assert (num_cells(10, 2), num_cells(64, 2), num_cells(10_000, 100), num_cells(500, 100)) == (4, 16, 16, 4)


def test_entropy_given_label_tells_a_collapse() -> None:
    rng = np.random.default_rng(6)
    labels = np.arange(4000) % 4
    assert entropy_given_label(labels, np.zeros((4000, 2)), 4) == 0
    assert entropy_given_label(labels, labels[:, None], 4) == 0
    uniform = rng.integers(0, 10, (4000, 1))
    assert entropy_given_label(labels, uniform, 4) == pytest.approx(np.log(10), abs=0.01)
    unlike = rng.integers(0, 10**6, (20, 3))
    assert entropy_given_label(np.arange(20) % 2, unlike, 2) == pytest.approx(np.log(10))  # no more than 10 images tell


def test_holm_is_the_textbooks() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
