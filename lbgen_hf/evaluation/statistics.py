"""Bootstrap intervals over images, paired between checkpoints.

Every score here is a function of counts. Each image falls into one cell ("in P_2 and right", say), and a resample of
the images is a new count of each cell, so 1000 resamples of 20,000 images are one vectorised pass:

    scores = estimate({"accuracy": lambda counts: counts[..., 1] / counts.sum(-1)}, correct, num_cells=2)
    low, high = scores["accuracy"].interval()

Which images a resample holds depends only on the number of images, their strata and the seed. Two checkpoints that saw
the same images are therefore resampled alike, and the replicates of their difference are paired.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lbgen_hf.checks import check_number
from lbgen_hf.errors import UserError

Counts = NDArray[np.int64]
Statistic = Callable[[Counts], NDArray[np.float64]]

_CHUNK = 4_000_000  # random numbers in memory at a time


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A score with its bootstrap replicates.

    Attributes:
        value: the score of all images; NaN where they leave it undefined, as a ratio to nothing.
        replicates: (R,) the score of each resample; NaN where a resample leaves it undefined.
    """

    value: float
    replicates: NDArray[np.float64]

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The difference, paired where both were resampled with the same images, strata and seed."""
        return Estimate(self.value - other.value, self.replicates - other.replicates)

    def interval(self, confidence_level: float = 0.95) -> tuple[float, float]:
        """The percentile bootstrap interval; NaN where no resample has a score."""
        tail = (1 - confidence_level) / 2
        low, high = np.quantile(self._defined, [tail, 1 - tail]) if len(self._defined) else (math.nan, math.nan)
        return float(low), float(high)

    @property
    def standard_error(self) -> float:
        """NaN where fewer than two resamples have a score."""
        return float(np.std(self._defined, ddof=1)) if len(self._defined) > 1 else math.nan

    @property
    def _defined(self) -> NDArray[np.float64]:
        return self.replicates[np.isfinite(self.replicates)]


def estimate(
    statistics: Mapping[str, Statistic],
    cells: ArrayLike,
    num_cells: int,
    *,
    strata: ArrayLike | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Estimate statistics of cell counts, each a function from (..., num_cells) to (...), on the same resamples.

    A statistic may be undefined: where it is not finite, its value or replicate is NaN.
    The other arguments and the errors are those of `resampled_counts`.
    """
    resampled = resampled_counts(cells, num_cells, strata=strata, n_resamples=n_resamples, seed=seed)
    observed = np.bincount(np.asarray(cells, dtype=np.int64), minlength=num_cells)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            name: Estimate(float(_finite_or_nan(statistic(observed))), _finite_or_nan(statistic(resampled)))
            for name, statistic in statistics.items()
        }


def _finite_or_nan(values: ArrayLike) -> NDArray[np.float64]:
    return np.where(np.isfinite(values), values, np.nan)


def finite_or_null(value: Any) -> Any:
    """Of what is written as JSON, which has no NaN and no infinity: a number that is undefined is null."""
    if isinstance(value, dict):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def accuracy(correct: ArrayLike, *, n_resamples: int = 1000, seed: int = 0) -> Estimate:
    """Top-1 accuracy in % of images (n,) that were classified right or not.

    Raises:
        UserError: there are no images.
    """
    statistics = {"accuracy": lambda counts: 100 * counts[..., 1] / counts.sum(-1)}
    return estimate(statistics, correct, 2, n_resamples=n_resamples, seed=seed)["accuracy"]


def mean(estimates: list[Estimate]) -> Estimate:
    """The mean of scores, resample by resample: of the seeds of one recipe, or of several datasets."""
    return Estimate(
        float(np.mean([estimate.value for estimate in estimates])),
        np.mean([estimate.replicates for estimate in estimates], axis=0),
    )


def resampled_counts(
    cells: ArrayLike,
    num_cells: int,
    *,
    strata: ArrayLike | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Counts:
    """Resample the images with replacement and count each resample's cells.

    Args:
        cells: (n,) the cell of each image, in 0..num_cells - 1.
        num_cells: K.
        strata: (n,) groups that keep their sizes in every resample, such as the partitions of a benchmark; default:
            one group.
        n_resamples: R.
        seed: same seed, n and strata, same images.

    Returns:
        (R, K) counts.

    Raises:
        UserError: there are no images.
    """
    check_number("n_resamples", n_resamples, integer=True, at_least=2)
    check_number("seed", seed, integer=True, at_least=0)
    cells = np.asarray(cells, dtype=np.int64)
    if not len(cells):
        raise UserError("there are no images to measure")
    strata = np.zeros(len(cells), dtype=np.int64) if strata is None else np.asarray(strata)
    groups = [cells[strata == stratum] for stratum in np.unique(strata)]
    rng = np.random.default_rng(seed)
    counts = np.zeros((n_resamples, num_cells), dtype=np.int64)
    rows = max(1, _CHUNK // len(cells))
    for start in range(0, n_resamples, rows):
        part = counts[start : start + rows]
        first_cell = num_cells * np.arange(len(part))[:, None]  # each resample counts in cells of its own
        for group in groups:
            resample = group[rng.integers(len(group), size=(len(part), len(group)), dtype=np.int32)]
            part += np.bincount((first_cell + resample).ravel(), minlength=part.size).reshape(part.shape)
    return counts


def smallest_detectable_difference(
    standard_error: float, *, paired: bool = False, confidence_level: float = 0.95, power: float = 0.8
) -> float:
    """The smallest true difference between two checkpoints that a test would find with this power.

    Args:
        standard_error: of one checkpoint's score, the other's taken to be as large and independent; or, if `paired`, of
            the difference itself, as `(a - b).standard_error` gives it.
        paired: whose standard error it is.
        confidence_level: of the two-sided test.
        power: the chance of finding such a difference.
    """
    normal = NormalDist()
    quantiles = normal.inv_cdf(0.5 + confidence_level / 2) + normal.inv_cdf(power)
    return quantiles * standard_error * (1 if paired else 2**0.5)
