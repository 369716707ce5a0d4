"""Splits and few-shot subsets."""

import numpy as np
import pytest

from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.splits import FEW_SHOT_SEEDS, few_shot_subset, shuffled, stratified_split

# By the SHA-256 of "0:0" to "0:9". A change here would change every split and few-shot subset.
EXPECTED_ORDER = [7, 4, 9, 3, 8, 2, 6, 0, 5, 1]


def test_the_order_is_fixed() -> None:
    assert shuffled(range(10), 0).tolist() == EXPECTED_ORDER
    assert shuffled(range(10), 1).tolist() != EXPECTED_ORDER


def test_a_stratified_split_is_exact_and_balanced() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 196, 8144)
    train, val = stratified_split(labels, 2444)
    assert (len(train), len(val)) == (5700, 2444)
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(8144))
    sizes = np.bincount(labels, minlength=196)
    taken = np.bincount(labels[val], minlength=196)
    assert np.abs(taken - sizes * 2444 / 8144).max() < 1
    assert np.array_equal(stratified_split(labels, 2444)[1], val)


def test_a_split_leaves_images_on_both_sides() -> None:
    with pytest.raises(UserError, match="cannot take 3 of 3 images"):
        stratified_split([0, 1, 2], 3)


def test_few_shot_subsets() -> None:
    labels = np.repeat([0, 1, 2], [100, 40, 3])
    for seed in FEW_SHOT_SEEDS:
        tenth, fifth = (few_shot_subset(labels, fraction, seed) for fraction in (0.1, 0.2))
        assert np.bincount(labels[tenth]).tolist() == [10, 4, 1]
        assert set(tenth) <= set(fifth)
    subsets = {tuple(few_shot_subset(labels, 0.1, seed)) for seed in FEW_SHOT_SEEDS}
    assert len(subsets) == 5
    assert np.array_equal(few_shot_subset(labels, 1, 0), np.arange(143))
    with pytest.raises(UserError, match="fraction must be at most 1 and above 0"):
        few_shot_subset(labels, 0, 0)
