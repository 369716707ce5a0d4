"""Splits and few-shot subsets, the same on every machine and with every version of every library.

The order of images is that of the SHA-256 of "seed:index", so that it depends on no random number generator.
"""

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lbgen_hf.checks import check_number
from lbgen_hf.errors import UserError

SPLIT_SEED = 0
FEW_SHOT_SEEDS = (0, 1, 2, 3, 4)

Indices = NDArray[np.int64]


def shuffled(indices: ArrayLike, seed: int) -> Indices:
    """The indices in the order of the SHA-256 of "seed:index"."""
    return np.array(
        sorted(np.asarray(indices).tolist(), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest()), dtype=int
    )


def stratified_split(labels: ArrayLike, num_selected: int, seed: int = SPLIT_SEED) -> tuple[Indices, Indices]:
    """Split images so that each class gives its share, with the total exact (largest remainders).

    Args:
        labels: (n,) class ids.
        num_selected: how many images the second part has.
        seed: of the choice.

    Returns:
        Sorted indices of the rest and of the selected.

    Raises:
        UserError: a part would have no images.
    """
    labels = np.asarray(labels)
    if not 0 < num_selected < len(labels):
        raise UserError(f"cannot take {num_selected} of {len(labels)} images and leave some")
    classes, sizes = np.unique(labels, return_counts=True)
    shares = sizes * num_selected / len(labels)
    counts = np.floor(shares).astype(int)
    largest = np.lexsort((classes, -(shares - counts)))[: num_selected - counts.sum()]
    counts[largest] += 1
    selected = np.concatenate(
        [shuffled(np.flatnonzero(labels == c), seed)[:count] for c, count in zip(classes, counts, strict=True)]
    )
    return np.setdiff1d(np.arange(len(labels)), selected), np.sort(selected)


def few_shot_subset(labels: ArrayLike, fraction: float, seed: int) -> Indices:
    """The same fraction of each class, at least one image of each; a smaller fraction's images are among a larger's.

    Args:
        labels: (n,) class ids of the training images alone: validation images have no place among them.
        fraction: in (0, 1].
        seed: one of `FEW_SHOT_SEEDS`.

    Returns:
        Sorted indices.
    """
    check_number("fraction", fraction, above=0, at_most=1)
    labels = np.asarray(labels)
    chosen = []
    for c in np.unique(labels):
        of_class = shuffled(np.flatnonzero(labels == c), seed)
        chosen.append(of_class[: max(1, round(fraction * len(of_class)))])
    return np.sort(np.concatenate(chosen))
