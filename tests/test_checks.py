import math

import pytest
import torch

from lbgen_hf.checks import check_finite, check_number
from lbgen_hf.errors import UserError


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (math.nan, {}, "--x must be a finite number, got nan"),
        (-math.inf, {"at_least": 0}, "--x must be a finite number, got -inf"),
        ("3", {}, "--x must be a finite number, got '3'"),
        (True, {"integer": True}, "--x must be an integer, got True"),
        (1.5, {"integer": True}, "--x must be an integer, got 1.5"),
        (0, {"above": 0, "integer": True}, "--x must be above 0, got 0"),
        (-1, {"at_least": 0, "below": 1}, "--x must be at least 0 and below 1, got -1"),
        (1.0, {"at_least": 0, "below": 1}, "--x must be at least 0 and below 1, got 1.0"),
        (2, {"at_least": 0, "at_most": 1}, "--x must be at least 0 and at most 1, got 2"),
    ],
)
def test_a_bad_number_is_refused_by_name(value, bounds, message):
    with pytest.raises(UserError) as error:
        check_number("--x", value, **bounds)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("value", "bounds"), [(None, {"above": 0}), (0, {"at_least": 0}), (1e-9, {"above": 0, "below": 1})]
)
def test_a_good_number_passes(value, bounds):
    check_number("--x", value, **bounds)


def test_check_finite_counts_what_is_wrong():
    check_finite("loss", torch.zeros(3))
    with pytest.raises(UserError, match="the LoRA: 2 of 3 values are not finite"):
        check_finite("the LoRA", torch.tensor([1, math.nan, math.inf]))
