"""Expected orders and their verdicts.

An order says which of two arms has the higher metric. It passes where the difference's 95 % interval lies on the
expected side of zero, fails where it lies on the other side, and was not seen at this n where it holds zero.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from scipy.stats import t as student

PASS, FAIL, NOT_SEEN = "pass", "fail", "not seen at this n"
GROUPS = {
    "paper": "what the paper's tables and figures say",
    "implied": "what must hold if the paper's explanation does",
    "language": "what must hold if the adapter works through what language leaves unsaid",
    "context_swap": "what docs/context_swap.md promises",
}


@dataclasses.dataclass(frozen=True)
class Order:
    """One line of `expected.yaml`.

    Attributes:
        group: a key of `GROUPS`.
        source: where it comes from.
        metric: of the report.
        left, right: arms.
        expect: how the left arm's metric is to lie beside the right arm's.
        paper: what the paper measured, left and right; None where it gives no number.
    """

    group: str
    source: str
    metric: str
    left: str
    expect: Literal["higher", "lower"]
    right: str
    paper: tuple[float, float] | None = None


@functools.cache
def expected_orders() -> tuple[Order, ...]:
    """All of `expected.yaml`."""
    text = Path(__file__).with_name("expected.yaml").read_text(encoding="utf-8")
    return tuple(Order(group, **row) for group, rows in yaml.safe_load(text).items() for row in rows)


@dataclasses.dataclass(frozen=True)
class Difference:
    """Left minus right.

    Attributes:
        value: the difference.
        standard_error: of it.
        degrees: of freedom of Student's t; infinite for a normal distribution.
    """

    value: float
    standard_error: float
    degrees: float = math.inf

    def _quantile(self, probability: float) -> float:
        return float(student.ppf(probability, self.degrees))

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95 %."""
        margin = self._quantile(0.975) * self.standard_error
        return self.value - margin, self.value + margin

    @property
    def p(self) -> float:
        """Of the two-sided test of no difference; not corrected for the number of orders."""
        if not self.standard_error > 0:
            return 1.0
        return float(2 * student.sf(abs(self.value) / self.standard_error, self.degrees))

    @property
    def smallest_detectable(self) -> float:
        """The true difference that the test finds with a power of about 80 %."""
        return (self._quantile(0.975) + self._quantile(0.8)) * self.standard_error

    def verdict(self, expect: Literal["higher", "lower"]) -> str:
        """`PASS`, `FAIL` or `NOT_SEEN`; the last where all pairs agree by chance, and no error can be told."""
        if not self.standard_error > 0:
            return NOT_SEEN
        low, high = self.interval if expect == "higher" else tuple(-bound for bound in reversed(self.interval))
        return PASS if low > 0 else FAIL if high < 0 else NOT_SEEN


def paired_difference(left: Sequence[float | None], right: Sequence[float | None]) -> Difference:
    """Of pairs (backbone and seed) of numbers, by Student's t over the pairs; at least two.

    NaN where a number is None: of one backbone it is undefined.
    """
    differences = np.asarray(left, dtype=float) - np.asarray(right, dtype=float)
    n = len(differences)
    return Difference(float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(n)), n - 1)


def prediction_interval(values: Sequence[float]) -> tuple[float, float]:
    """Where one more value would lie with 95 %, by Student's t of at least two that are normally distributed."""
    n = len(values)
    margin = student.ppf(0.975, n - 1) * np.std(values, ddof=1) * math.sqrt(1 + 1 / n)
    return float(np.mean(values) - margin), float(np.mean(values) + margin)


def bootstrap_difference(left: tuple[float, Sequence[float]], right: tuple[float, Sequence[float]]) -> Difference:
    """Of two values with bootstrap replicates on the same resamples, by the normal distribution."""
    replicates = np.subtract(left[1], right[1])
    return Difference(left[0] - right[0], float(replicates.std(ddof=1)))
