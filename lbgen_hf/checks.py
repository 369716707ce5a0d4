"""Where numbers are checked for finiteness and range, before any work: for Python, `lbgen` and the scripts alike."""

import math

from torch import Tensor

from lbgen_hf.errors import UserError


def check_number(
    name: str,
    value: float | None,
    *,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    integer: bool = False,
) -> None:
    """Refuse a number that is not finite or lies outside its range; None is an option that was not given.

    Args:
        name: how the user knows the number: `--learning_rate` or `learning_rate`.
        value: the number.
        at_least, at_most: inclusive bounds.
        above, below: exclusive bounds.
        integer: only whole numbers, never a bool.

    Raises:
        UserError: the value is no number, not finite, not whole where it must be, or out of range.
    """
    if value is None:
        return
    kind = "an integer" if integer else "a finite number"
    is_number = isinstance(value, int if integer else (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise UserError(f"{name} must be {kind}, got {value!r}")
    bounds = [
        (at_least, value >= at_least, "at least"),
        (at_most, value <= at_most, "at most"),
        (above, value > above, "above"),
        (below, value < below, "below"),
    ]
    wanted = " and ".join(f"{words} {bound}" for bound, _, words in bounds if math.isfinite(bound))
    if not all(holds for _, holds, _ in bounds):
        raise UserError(f"{name} must be {wanted}, got {value}")


def check_finite(name: str, values: Tensor) -> None:
    """Refuse a tensor that holds a NaN or an infinity.

    Raises:
        UserError: it does; `name` says whose values they are and, where known, what to do.
    """
    if not values.isfinite().all():
        raise UserError(f"{name}: {int((~values.isfinite()).sum())} of {values.numel()} values are not finite")
