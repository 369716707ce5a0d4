"""The bootstrap, against closed forms."""

import numpy as np
import pytest

from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.statistics import (
    Estimate,
    accuracy,
    mean,
    resampled_counts,
    smallest_detectable_difference,
)


def test_standard_error_of_an_accuracy_is_the_binomials() -> None:
    correct = np.arange(1000) % 4 == 0
    estimate = accuracy(correct, n_resamples=4000)
    expected = 100 * np.sqrt(0.25 * 0.75 / 1000)
    assert estimate.value == 25
    assert estimate.standard_error == pytest.approx(expected, rel=0.05)
    low, high = estimate.interval(0.95)
    assert (low, high) == pytest.approx((25 - 1.96 * expected, 25 + 1.96 * expected), abs=0.25)
    narrow = estimate.interval(0.5)
    assert low < narrow[0] < narrow[1] < high


def test_strata_keep_their_sizes() -> None:
    strata = np.repeat([0, 1, 2], [50, 7, 1])
    counts = resampled_counts(strata, 3, strata=strata, n_resamples=20)
    assert (counts == [50, 7, 1]).all()
    unstratified = resampled_counts(strata, 3, n_resamples=20)
    assert (unstratified.sum(1) == 58).all()
    assert unstratified.std(0).min() > 0


def test_a_resample_is_the_same_in_any_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = np.arange(40) % 5
    whole = resampled_counts(cells, 5, n_resamples=30, seed=3)
    monkeypatch.setattr("lbgen_hf.evaluation.statistics._CHUNK", 100)
    assert (resampled_counts(cells, 5, n_resamples=30, seed=3) == whole).all()
    assert (resampled_counts(cells, 5, n_resamples=30, seed=4) != whole).any()


def test_differences_are_paired() -> None:
    """Two checkpoints that err on nearly the same images differ far less than each varies."""
    first = np.arange(2000) % 2 == 0
    second = first.copy()
    second[:20] = True  # ten images more
    a, b = accuracy(first), accuracy(second)
    difference = b - a
    assert difference.value == pytest.approx(0.5)
    assert difference.standard_error == pytest.approx(100 * np.sqrt(10) / 2000, rel=0.1)
    assert difference.standard_error < a.standard_error / 5


def test_mean_of_estimates() -> None:
    both = mean([Estimate(1.0, np.array([0.0, 2.0])), Estimate(3.0, np.array([4.0, 6.0]))])
    assert both.value == 2
    assert both.replicates.tolist() == [2, 4]


def test_smallest_detectable_difference() -> None:
    """2.8 standard errors of the difference, at the usual 5 % and 80 %."""
    assert smallest_detectable_difference(1.0, paired=True) == pytest.approx(1.95996 + 0.84162, abs=1e-4)
    assert smallest_detectable_difference(1.0) == pytest.approx(2.80158 * 2**0.5, abs=1e-4)


def test_bad_input() -> None:
    with pytest.raises(UserError, match="no images"):
        accuracy([])
    with pytest.raises(UserError, match="n_resamples must be at least 2"):
        accuracy([True], n_resamples=1)
    with pytest.raises(UserError, match="seed must be at least 0"):
        accuracy([True], seed=-1)
