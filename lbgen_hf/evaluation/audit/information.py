"""How much of the label an attribute gives away: mutual information, corrected for chance.

The plug-in estimate of mutual information is too high by about (classes - 1) (cells - 1) / 2n nats. What it is on
average when the labels are shuffled is taken off, and the label's entropy scales the rest (the adjusted mutual
information of Vinh, Epps and Bailey, JMLR 2010, with the label's entropy as its upper bound):

    score = (I - E[I | shuffled]) / (H(label) - E[I | shuffled])

It is 0 on average where there is no relation, whatever the number of classes, their balance and n, and 1 where the
attribute determines the label. A shuffle changes the table of label and attribute but not its margins, so shuffled
tables are sampled directly (Patefield 1981, in SciPy): the cost does not grow with the number of images.

Continuous attributes are cut into cells that hold equally many images: quantile bins, generalised to several dimensions
by median cuts along the direction of largest spread (equiprobable adaptive partitions: Darbellay and Vajda, IEEE Trans.
Inf. Theory 1999). The cells never see the labels, so that the shuffles are a valid null.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from scipy.special import xlogy
from scipy.stats import random_table

MAX_CELLS = 16
_CHUNK_BYTES = 2**26  # of sampled tables held at a time


@dataclasses.dataclass(frozen=True)
class Relation:
    """How label and attribute are related in one dataset.

    Attributes:
        score: share of the label's entropy that the attribute gives away, corrected for chance; 0 is no relation, where
            it may come out a little below zero.
        replicates: (R,) the score of bootstrap samples, taken within each class and centred on the score.
        null: (R,) the score under shuffled labels.
        p_value: how often shuffled labels score at least as much: (1 + count) / (1 + R).
        classes: (C,) the same share for each class: how far the attribute alone tells it from the rest.
        class_replicates: (R, C) of the bootstrap, centred on `classes`.
    """

    score: float
    replicates: np.ndarray
    null: np.ndarray
    p_value: float
    classes: np.ndarray
    class_replicates: np.ndarray

    @property
    def interval(self) -> tuple[float, float]:
        """The bootstrap's 95 % interval; it holds the score."""
        low, high = np.quantile(self.replicates, [0.025, 0.975])
        return min(float(low), self.score), max(float(high), self.score)


def num_cells(num_images: int, num_classes: int) -> int:
    """How many cells an attribute is cut into: a power of two from 4 to 16, about two images a class and cell."""
    cells = MAX_CELLS
    while cells > 4 and num_images < 2 * num_classes * cells:
        cells //= 2
    return cells


def equiprobable_cells(values: np.ndarray, cells: int) -> np.ndarray:
    """Cut points into cells of equally many points, as far as ties allow.

    Args:
        values: (n, d), each dimension in units that are comparable.
        cells: a power of two.

    Returns:
        (n,) the cell of each point, in 0..cells - 1.
    """
    ids = np.zeros(len(values), dtype=np.int64)
    members = [np.arange(len(values))]
    while len(members) < cells:
        members = [half for cell in members for half in _halves(values, cell)]
    for cell, rows in enumerate(members):
        ids[rows] = cell
    return ids


def _halves(values: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut a cell at its median along its first principal direction; equal points stay together."""
    if len(rows) < 2:
        return rows, rows[:0]
    points = values[rows].astype(np.float64)
    centred = points - points.mean(0)
    direction = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    direction = direction * np.sign(direction[np.abs(direction).argmax()])  # eigenvectors have no sign of their own
    along = np.round(centred @ direction, 9)
    # Of the two cuts at the median, the one that leaves the halves more equal: ties lie on one side.
    median = np.partition(along, len(along) // 2)[len(along) // 2]
    below = min((along < median, along <= median), key=lambda side: abs(2 * side.sum() - len(side)))
    return rows[below], rows[~below]


def count_table(labels: np.ndarray, cells: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, A) how many images of each class lie in each cell; cells that are empty are omitted."""
    cells = np.unique(cells, return_inverse=True)[1]
    width = int(cells.max()) + 1
    return np.bincount(labels * width + cells, minlength=num_classes * width).reshape(num_classes, width)


def class_information(tables: np.ndarray) -> np.ndarray:
    """The information of each class about the attribute: KL(p(a | class) || p(a)) in nats, by plug-in.

    Args:
        tables: (..., C, A) counts.

    Returns:
        (..., C); weighted by the share of each class, its sum is the mutual information.
    """
    tables = np.asarray(tables, dtype=np.float64)
    of_class = tables.sum(-1)
    marginal = tables.sum(-2) / tables.sum((-2, -1))[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        conditional = tables / of_class[..., None]
        logs = np.log(conditional) - np.log(marginal)[..., None, :]
    return np.where(tables > 0, conditional * np.where(tables > 0, logs, 0), 0).sum(-1)


def entropy(counts: np.ndarray) -> float:
    """The plug-in entropy of counts (A,) in nats."""
    shares = counts / counts.sum()
    return float(-xlogy(shares, shares).sum())


def relate(table: np.ndarray, resamples: int = 999, seed: int = 0) -> Relation:
    """Score the relation of label and attribute.

    Args:
        table: (C, A) counts; every class has an image.
        resamples: how many shuffles, and how many bootstrap samples.
        seed: of both.
    """
    rng = np.random.default_rng(seed)
    share = table.sum(1) / table.sum()
    observed = class_information(table)
    shuffled = np.concatenate([class_information(chunk) for chunk in _shuffled_tables(table, resamples, rng)])
    chance = shuffled.mean(0)
    label_entropy = entropy(table.sum(1))

    def score(information: np.ndarray) -> np.ndarray:
        return (information - chance) @ share / (label_entropy - chance @ share)

    def class_score(information: np.ndarray) -> np.ndarray:
        return (information - chance) / (-np.log(share) - chance)

    resampled = np.concatenate([class_information(chunk) for chunk in _resampled_tables(table, resamples, rng)])
    # A resampled table looks more dependent than its source: centring takes that out.
    resampled += observed - resampled.mean(0)
    exceed = (shuffled @ share >= observed @ share - 1e-12).sum()
    return Relation(
        score=float(score(observed)),
        replicates=score(resampled),
        null=score(shuffled),
        p_value=float((1 + exceed) / (1 + resamples)),
        classes=class_score(observed),
        class_replicates=class_score(resampled),
    )


def _chunks(table: np.ndarray, total: int) -> Iterator[int]:
    size = max(1, _CHUNK_BYTES // (8 * table.size))
    for start in range(0, total, size):
        yield min(size, total - start)


def _shuffled_tables(table: np.ndarray, total: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """(chunk, C, A) tables with the margins of `table`: what shuffled labels give."""
    shuffles = random_table(table.sum(1), table.sum(0))
    for size in _chunks(table, total):
        # SciPy 1.17 leaves a table of one column uninitialised; its margins allow one table only.
        one = table.shape[1] == 1
        yield np.broadcast_to(table, (size, *table.shape)) if one else shuffles.rvs(size, random_state=rng)


def _resampled_tables(table: np.ndarray, total: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """(chunk, C, A) tables of images sampled with replacement within each class."""
    of_class = table.sum(1)
    for size in _chunks(table, total):
        yield rng.multinomial(of_class, table / of_class[:, None], size=(size, len(table)))


def entropy_given_label(labels: np.ndarray, grid: np.ndarray, num_classes: int) -> float:
    """The entropy that the attribute keeps within a class, in nats: near 0 where all images of a class are alike.

    Args:
        labels: (n,) class of each image.
        grid: (n, d) the attribute rounded to a fixed step, not to this dataset's quantiles, which hide a collapse.
        num_classes: C.

    Returns:
        The mean over images of their class's entropy, each with Miller's and Madow's correction
        ((occupied cells - 1) / 2n) and at most log n.
    """
    cells = np.unique(grid, axis=0, return_inverse=True)[1].reshape(-1)
    pairs, counts = np.unique(labels * (cells.max() + 1) + cells, return_counts=True)
    classes = pairs // (cells.max() + 1)
    of_class = np.bincount(classes, counts, num_classes)
    occupied = np.bincount(classes, minlength=num_classes)
    share = counts / of_class[classes]
    plug_in = np.bincount(classes, -xlogy(share, share), num_classes)
    present = of_class > 0
    corrected = plug_in[present] + (occupied[present] - 1) / (2 * of_class[present])
    bounded = np.minimum(corrected, np.log(of_class[present]))
    return float(bounded @ of_class[present] / of_class.sum())


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values corrected for their number by Holm's step-down method: the chance of any false alarm is kept."""
    order = np.argsort(p_values)
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return corrected
