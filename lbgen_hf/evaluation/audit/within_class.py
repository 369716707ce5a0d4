"""How alike the images of a class are, beside the whole set, and how many are near-duplicates."""

import dataclasses
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from lbgen_hf.evaluation.audit.collecting import Sample

_SMALL_DISTANCE = 5 / 255  # root mean square over 8x8 images: candidates
_DISTANCE = 8 / 255  # over 32x32 images: near-duplicates
_NEAREST = 4  # candidates that are looked at, an image
_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class Diversity:
    """How different the images of a class are.

    Attributes:
        classes: (C,) root mean square distance between two images of the class over that between two images of the
            set, as if all classes were equally large: 1 is as diverse as the whole, 0 is one image repeated.
        mean: over classes.
        interval: 95 %, from a bootstrap over the images of each class.
    """

    classes: np.ndarray
    mean: float
    interval: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class NearDuplicates:
    """Images that nearly repeat another: (P, 2) indices of pairs, one for each image that repeats an earlier one."""

    pairs: np.ndarray

    def of_classes(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """(C,) how many images repeat another of their own class."""
        first, second = self.pairs.T
        return np.bincount(labels[second[labels[first] == labels[second]]], minlength=num_classes)

    def across_classes(self, labels: np.ndarray) -> int:
        """How many images repeat one of another class: one of the two labels may be wrong."""
        return int((labels[self.pairs[:, 0]] != labels[self.pairs[:, 1]]).sum())


def measure_diversity(
    vectors: np.ndarray, labels: np.ndarray, num_classes: int, resamples: int = 999, seed: int = 0
) -> Diversity:
    """The distance within each class against the whole set.

    Args:
        vectors: (n, d) pixels or features.
        labels: (n,); every class has at least two images.
        num_classes: C.
        resamples, seed: of the bootstrap.
    """
    flat = vectors.reshape(len(vectors), -1)
    count = np.bincount(labels, minlength=num_classes)
    means = np.zeros((num_classes, flat.shape[1]))
    np.add.at(means, labels, flat.astype(np.float64))
    means /= count[:, None]
    # Two images of a class differ by twice its variance on average; of the set, by the variance of the means more.
    squares = np.empty(len(flat))
    for start in range(0, len(flat), 4096):
        rows = slice(start, start + 4096)
        squares[rows] = ((flat[rows] - means[labels[rows]]) ** 2).sum(1)
    bessel = count / (count - 1)
    between = max(
        0.0, ((means - means.mean(0)) ** 2).sum(1).mean() - (_by_class(squares, labels, count) / (count - 1)).mean()
    )

    def ratios(within: np.ndarray) -> np.ndarray:
        total = within.mean(-1, keepdims=True) + between * num_classes / (num_classes - 1)
        return np.sqrt(np.divide(within, total, out=np.ones_like(within), where=total > 0))

    rng = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    starts = np.concatenate([[0], count.cumsum()[:-1]])
    low_high = []
    for _ in range(min(resamples, max(100, 10**7 // len(flat)))):
        chosen = order[np.repeat(starts, count) + rng.integers(np.repeat(count, count))]
        low_high.append(ratios(_by_class(squares[chosen], labels[order], count) * bessel).mean())
    observed = ratios(_by_class(squares, labels, count) * bessel)
    low, high = np.quantile(low_high, [0.025, 0.975])
    return Diversity(observed, float(observed.mean()), (float(low), float(high)))


def _by_class(values: np.ndarray, labels: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.bincount(labels, values, len(count)) / count


def find_near_duplicates(sample: Sample) -> NearDuplicates:
    """Pairs of images that differ by less than 3 % of the range of values (root mean square over 32x32 pixels)."""
    pairs = []
    seen: dict[int, np.ndarray] = {}

    def pixels(index: int) -> np.ndarray:
        if index not in seen:
            image = (
                Image.open(io.BytesIO(sample.thumbnail(index))).convert("RGB").resize((32, 32), Image.Resampling.BOX)
            )
            seen[index] = np.asarray(image, dtype=np.float32) / 255
        return seen[index]

    for second, candidates in _candidates(sample.small.reshape(len(sample), -1).astype(np.float32) / 255):
        for first in candidates:
            if np.sqrt(((pixels(first) - pixels(second)) ** 2).mean()) < _DISTANCE:
                pairs.append((first, second))
                break
        if len(seen) > 5000:
            seen.clear()
    return NearDuplicates(np.array(pairs, dtype=np.int64).reshape(-1, 2))


def _candidates(vectors: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """For each image with close ones among those before it along the set's principal axis: it, and the closest.

    Two vectors are no closer than their projections on an axis: only a window along it is compared.
    """
    centred = vectors - vectors.mean(0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    along = centred @ axis
    order = np.argsort(along, kind="stable")
    along, centred = along[order], centred[order]
    squares = (centred**2).sum(1)
    limit = _SMALL_DISTANCE * np.sqrt(vectors.shape[1])
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        first = int(np.searchsorted(along, along[start] - limit))
        products = centred[start:stop] @ centred[first:stop].T
        distances = squares[start:stop, None] + squares[None, first:stop] - 2 * products
        before = np.arange(first, stop)[None] < np.arange(start, stop)[:, None]
        distances[~before] = np.inf
        for row in np.flatnonzero(distances.min(1) < limit**2):
            nearest = np.argsort(distances[row])[:_NEAREST]
            nearest = nearest[distances[row, nearest] < limit**2]
            yield int(order[start + row]), [int(order[first + other]) for other in nearest]
