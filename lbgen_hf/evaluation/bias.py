"""The paper's three measures of a classifier's bias, from its decisions alone (sec. 4.3).

`*_estimates` give scores with their bootstrap replicates, for differences between checkpoints, NaN where the decisions
leave one undefined; `texture_inclination`, `context_bias` and `background_gap` give plain numbers, and are public as
`lbgen_hf.metrics`.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lbgen_hf.checks import check_number
from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.statistics import Counts, Estimate, estimate

NUM_PARTITIONS = 4  # FOCUS: 0, 1, 2 or 3 uncommon attributes
PARTITIONS = ("mixed_same", "mixed_rand", "original")

_SHAPE, _TEXTURE, _OTHER = range(3)


def texture_inclination(
    predictions: ArrayLike,
    references: ArrayLike,
    textures: ArrayLike,
    *,
    confidence_level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """How often a classifier that recognises one of two cues goes by texture: TI = texture / (shape + texture).

    The ratio is of all decisions together, not a mean over classes. Images whose shape and texture are of one class
    have no conflict and are not counted.

    Args:
        predictions: (n,) predicted class ids.
        references: (n,) the class id of each shape.
        textures: (n,) the class id of each texture.
        confidence_level: of the interval, a percentile bootstrap over images.
        n_resamples: of the bootstrap.
        seed: of the bootstrap; the same for two checkpoints makes their resamples paired.

    Returns:
        `texture_inclination` in % and `texture_inclination_interval`; the counts `shape_decisions`,
        `texture_decisions`, `other_decisions` (neither cue) and `no_conflict`.

    Raises:
        UserError: no image has a conflict, no decision is for either cue, or the lengths differ.
    """
    check_number("confidence_level", confidence_level, above=0, below=1)
    estimates, counts = texture_inclination_estimates(
        predictions, references, textures, n_resamples=n_resamples, seed=seed
    )
    if not counts["shape_decisions"] + counts["texture_decisions"]:
        raise UserError(f"none of {counts['other_decisions']} decisions is for the shape's or the texture's class")
    return {**_with_intervals(estimates, ("texture_inclination",), confidence_level), **counts}


def texture_inclination_estimates(
    predictions: ArrayLike, references: ArrayLike, textures: ArrayLike, *, n_resamples: int = 1000, seed: int = 0
) -> tuple[dict[str, Estimate], dict[str, int]]:
    """TI with its replicates, and the counts of decisions; arguments and errors as in `texture_inclination`.

    But without a decision for either cue TI is NaN.
    """
    predictions, shapes, textures = _class_ids(predictions=predictions, references=references, textures=textures)
    conflict = shapes != textures
    predictions, shapes, textures = predictions[conflict], shapes[conflict], textures[conflict]
    if not len(predictions):
        raise UserError("no image has a shape and a texture of different classes")
    decisions = np.select([predictions == shapes, predictions == textures], [_SHAPE, _TEXTURE], _OTHER)
    counts = np.bincount(decisions, minlength=3)

    def inclination(counts: Counts) -> NDArray[np.float64]:
        return 100 * counts[..., _TEXTURE] / (counts[..., _SHAPE] + counts[..., _TEXTURE])

    statistics = {"texture_inclination": inclination}
    estimates = estimate(statistics, decisions, 3, n_resamples=n_resamples, seed=seed)
    names = ("shape_decisions", "texture_decisions", "other_decisions")
    return estimates, {
        **dict(zip(names, counts.tolist(), strict=True)),
        "no_conflict": int((~conflict).sum()),
    }


def context_bias(
    predictions: ArrayLike,
    references: ArrayLike,
    num_uncommon: ArrayLike,
    *,
    confidence_level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """How much accuracy is left in uncommon contexts: CB_avg = mean over k = 1..3 of Acc(P_k) / Acc(P_0) (eq. 9).

    P_k are the images with k uncommon attributes. FOCUS has 21 images in P_3, so its CB_avg says little: `cb_12` leaves
    P_3 out. Partitions also differ in their classes: in `cb_macro`, Acc(P_k) is the mean over the classes in P_k.

    Args:
        predictions: (n,) predicted class ids.
        references: (n,) true class ids.
        num_uncommon: (n,) how many attributes of each image's context are uncommon for its class, 0 to 3.
        confidence_level, n_resamples, seed: as in `texture_inclination`; resampled within each partition.

    Returns:
        In %: `cb_avg`, `cb_12` and `cb_macro`, each with `NAME_interval`; `accuracy_p0` to `accuracy_p3`. The counts
        `n_p0` to `n_p3`. `context_bias_interval` is `cb_avg_interval`.

    Raises:
        UserError: a partition is empty, nothing in P_0 is classified right, or the lengths differ.
    """
    check_number("confidence_level", confidence_level, above=0, below=1)
    estimates, sizes = context_bias_estimates(predictions, references, num_uncommon, n_resamples=n_resamples, seed=seed)
    if not estimates["accuracy_p0"].value:
        raise UserError(f"none of {sizes['n_p0']} images of P_0 is classified right, so no accuracy is relative to it")
    result = _with_intervals(estimates, ("cb_avg", "cb_12", "cb_macro"), confidence_level)
    return {**result, "context_bias_interval": result["cb_avg_interval"], **sizes}


def context_bias_estimates(
    predictions: ArrayLike, references: ArrayLike, num_uncommon: ArrayLike, *, n_resamples: int = 1000, seed: int = 0
) -> tuple[dict[str, Estimate], dict[str, int]]:
    """The scores of `context_bias` with their replicates, and the sizes of the partitions; errors as there.

    But where nothing in P_0 is classified right, what is relative to it is NaN.
    """
    predictions, references, num_uncommon = _class_ids(
        predictions=predictions, references=references, num_uncommon=num_uncommon
    )
    outside = ~np.isin(num_uncommon, range(NUM_PARTITIONS))
    if outside.any():
        raise UserError(f"num_uncommon must be 0 to 3, got {num_uncommon[outside][0]}")
    sizes = np.bincount(num_uncommon, minlength=NUM_PARTITIONS)
    if not sizes.all():
        found = ", ".join(f"P_{k} {size}" for k, size in enumerate(sizes))
        raise UserError(f"every partition needs images; found {found}")
    correct = predictions == references

    classes, class_index = np.unique(references, return_inverse=True)
    shape = (NUM_PARTITIONS, len(classes), 2)
    cells = np.ravel_multi_index((num_uncommon, class_index, correct.astype(np.int64)), shape)

    def accuracies(counts: Counts) -> NDArray[np.float64]:
        table = counts.reshape(*counts.shape[:-1], *shape).sum(-2)
        return table[..., 1] / table.sum(-1)

    def macro_accuracies(counts: Counts) -> NDArray[np.float64]:
        table = counts.reshape(*counts.shape[:-1], *shape)
        present = table.sum(-1) > 0
        of_class = table[..., 1] / np.maximum(table.sum(-1), 1)
        return of_class.sum(-1) / present.sum(-1)

    def relative(acc: NDArray[np.float64], last: int) -> NDArray[np.float64]:
        return 100 * (acc[..., 1 : last + 1] / acc[..., :1]).mean(-1)

    statistics = {
        "cb_avg": lambda counts: relative(accuracies(counts), 3),
        "cb_12": lambda counts: relative(accuracies(counts), 2),
        "cb_macro": lambda counts: relative(macro_accuracies(counts), 3),
        **{f"accuracy_p{k}": lambda counts, k=k: 100 * accuracies(counts)[..., k] for k in range(NUM_PARTITIONS)},
    }
    estimates = estimate(
        statistics, cells, int(np.prod(shape)), strata=num_uncommon, n_resamples=n_resamples, seed=seed
    )
    return estimates, {f"n_p{k}": int(size) for k, size in enumerate(sizes)}


def background_gap(
    predictions: ArrayLike,
    references: ArrayLike,
    partitions: Sequence[str],
    *,
    confidence_level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """How much accuracy a background of another class costs: Acc(Mixed-Same) - Acc(Mixed-Rand), in points.

    A classifier that is seldom right has a small gap, so the gap is also given relative to the accuracy on the original
    images, where these are among the images.

    Args:
        predictions: (n,) predicted class ids. For ImageNet-9: the class of the argmax over the 1000 classes.
        references: (n,) true class ids.
        partitions: (n,) "mixed_same", "mixed_rand" or "original".
        confidence_level, n_resamples, seed: as in `texture_inclination`; resampled within each partition.

    Returns:
        `background_gap` in points with `background_gap_interval`; in %, `accuracy_mixed_same` and
        `accuracy_mixed_rand`; with originals also `accuracy_original` and, unless it is 0, `relative_gap` (the gap
        over it) with `relative_gap_interval`. The counts `n_mixed_same`, `n_mixed_rand` and so on.

    Raises:
        UserError: Mixed-Same or Mixed-Rand is empty, a partition is unknown, or the lengths differ.
    """
    check_number("confidence_level", confidence_level, above=0, below=1)
    estimates, sizes = background_gap_estimates(predictions, references, partitions, n_resamples=n_resamples, seed=seed)
    return {**_with_intervals(estimates, ("background_gap", "relative_gap"), confidence_level), **sizes}


def background_gap_estimates(
    predictions: ArrayLike, references: ArrayLike, partitions: Sequence[str], *, n_resamples: int = 1000, seed: int = 0
) -> tuple[dict[str, Estimate], dict[str, int]]:
    """The scores of `background_gap` with their replicates, and the sizes of the partitions; errors as there.

    Where no original is classified right, the relative gap is NaN.
    """
    unknown = sorted(set(map(str, partitions)) - set(PARTITIONS))
    if unknown:
        raise UserError(f"unknown partition {unknown[0]!r}; choose from {', '.join(PARTITIONS)}")
    predictions, references, partition = _class_ids(
        predictions=predictions, references=references, partitions=[PARTITIONS.index(name) for name in partitions]
    )
    sizes = np.bincount(partition, minlength=len(PARTITIONS))
    same, rand, original = range(len(PARTITIONS))
    if not (sizes[same] and sizes[rand]):
        raise UserError(f"both partitions need images; found mixed_same {sizes[same]}, mixed_rand {sizes[rand]}")

    def accuracy_of(counts: Counts, k: int) -> NDArray[np.float64]:
        table = counts.reshape(*counts.shape[:-1], len(PARTITIONS), 2)[..., k, :]
        return 100 * table[..., 1] / table.sum(-1)

    def gap(counts: Counts) -> NDArray[np.float64]:
        return accuracy_of(counts, same) - accuracy_of(counts, rand)

    present = [k for k in range(len(PARTITIONS)) if sizes[k]]
    statistics = {
        "background_gap": gap,
        **{f"accuracy_{PARTITIONS[k]}": lambda counts, k=k: accuracy_of(counts, k) for k in present},
    }
    if sizes[original]:
        statistics["relative_gap"] = lambda counts: 100 * gap(counts) / accuracy_of(counts, original)
    cells = 2 * partition + (predictions == references)
    estimates = estimate(statistics, cells, 2 * len(PARTITIONS), strata=partition, n_resamples=n_resamples, seed=seed)
    return estimates, {f"n_{PARTITIONS[k]}": int(sizes[k]) for k in present}


def _with_intervals(estimates: dict[str, Estimate], names: Sequence[str], confidence_level: float) -> dict:
    """The values of all estimates that are defined, and `NAME_interval` of the named ones."""
    values = {name: found.value for name, found in estimates.items() if math.isfinite(found.value)}
    intervals = {f"{name}_interval": estimates[name].interval(confidence_level) for name in names if name in values}
    return {**values, **intervals}


def _class_ids(**columns: ArrayLike) -> list[NDArray[np.int64]]:
    """Columns of one length as integers.

    Raises:
        UserError: they are not.
    """
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    for name, array in arrays.items():
        if array.ndim != 1 or not len(array):
            raise UserError(f"{name} must hold one integer an image, got the shape {array.shape}")
        if array.dtype.kind not in "iu":
            raise UserError(f"{name} must be integers, got {array.dtype}")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"lengths differ: {', '.join(f'{name} {length}' for name, length in lengths.items())}")
    return [array.astype(np.int64) for array in arrays.values()]
