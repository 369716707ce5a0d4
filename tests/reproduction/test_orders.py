"""Verdicts in closed form and against scipy, and the committed orders themselves."""

import math

import numpy as np
import pytest
from scipy.stats import norm, ttest_rel

from lbgen_hf.reproduction.arms import standard_arms
from lbgen_hf.reproduction.orders import (
    FAIL,
    NOT_SEEN,
    PASS,
    Difference,
    bootstrap_difference,
    expected_orders,
    paired_difference,
    prediction_interval,
)
from lbgen_hf.reproduction.report import TITLES


def test_paired_difference_is_the_paired_t_test() -> None:
    left, right = [41.0, 44.5, 39.0, 47.0], [40.0, 41.0, 37.5, 41.0]
    ours, scipys = paired_difference(left, right), ttest_rel(left, right)
    assert ours.value == pytest.approx(3.0)
    assert ours.p == pytest.approx(scipys.pvalue)
    assert ours.interval == pytest.approx(tuple(scipys.confidence_interval(0.95)))


def test_bootstrap_difference_is_the_z_test_on_paired_replicates() -> None:
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=400), rng.normal(size=400)
    difference = bootstrap_difference((0.5, 0.5 + shared), (0.2, 0.2 + shared - 0.1 * own))
    error = 0.1 * own.std(ddof=1)
    assert difference.value == pytest.approx(0.3)
    assert difference.standard_error == pytest.approx(error)  # what the two share is gone
    assert difference.p == pytest.approx(2 * norm.sf(0.3 / error))
    assert difference.smallest_detectable == pytest.approx((1.959964 + 0.841621) * error, rel=1e-5)


def test_one_more_value_lies_in_the_prediction_interval_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = []
    for *values, one_more in rng.normal(3, 2, size=(4000, 5)):
        low, high = prediction_interval(values)
        assert (low + high) / 2 == pytest.approx(np.mean(values))
        found.append(low <= one_more <= high)
    assert np.mean(found) == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize(
    ("value", "expect", "verdict"),
    [
        (1.97, "higher", PASS),
        (1.95, "higher", NOT_SEEN),
        (-1.95, "higher", NOT_SEEN),
        (-1.97, "higher", FAIL),
        (-1.97, "lower", PASS),
        (1.95, "lower", NOT_SEEN),
        (1.97, "lower", FAIL),
    ],
)
def test_an_interval_on_one_side_of_zero_decides(value: float, expect: str, verdict: str) -> None:
    assert Difference(value, 1.0).verdict(expect) == verdict
    assert (Difference(value, 1.0).p < 0.05) == (verdict != NOT_SEEN)


def test_three_pairs_need_a_larger_difference_than_many() -> None:
    assert Difference(4.2, 1.0, 2).verdict("higher") == NOT_SEEN
    assert Difference(4.4, 1.0, 2).verdict("higher") == PASS


@pytest.mark.parametrize("error", [0.0, math.nan])
def test_without_an_error_nothing_is_decided(error: float) -> None:
    assert Difference(1.0, error, 1).verdict("higher") == NOT_SEEN
    assert Difference(1.0, error, 1).p == 1


def test_expected_orders_name_metrics_and_arms_of_the_report() -> None:
    known = {*standard_arms({"lbGen": "a", "context swap": "b"})}
    orders = expected_orders()
    assert {order.metric for order in orders} <= set(TITLES)
    assert {arm for order in orders for arm in (order.left, order.right)} <= known
    assert len({(order.metric, order.left, order.right) for order in orders}) == len(orders)
    for order in orders:
        assert order.expect in ("higher", "lower")
        if order.paper:
            assert (order.paper[0] > order.paper[1]) == (order.expect == "higher"), order
