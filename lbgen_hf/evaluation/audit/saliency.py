"""A plain saliency mask: what differs in colour from the border of the frame is the object.

The boundary prior of salient object detection (Wei et al., "Geodesic Saliency Using Background Priors", ECCV 2012):
most of a photograph's border is background. A pixel's saliency is its distance in CIE Lab to the third nearest of 48
pixels sampled along the border, so that a background of several colours stays background, and an object that is cut by
the frame stays an object unless it covers more than about a twentieth of the border. Otsu's threshold makes it a mask.

Where it is blind: an object that fills the frame is taken for background (the mask is then a detail of it); an object
of the background's own colours is missed. A centred object is the easy case.
"""

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree

GRID = 32  # the mask's side
_BORDER = 2  # pixels of the grid
_STRIDE = 5  # one of so many of the border's pixels is taken; a row has four
_NEIGHBOUR = 3
_LEVELS = 64


def _border_pixels() -> np.ndarray:
    border = np.ones((GRID, GRID), dtype=bool)
    border[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    return np.flatnonzero(border)[::_STRIDE]


_BORDER_PIXELS = _border_pixels()


def saliency(lab: np.ndarray) -> np.ndarray:
    """How far each pixel's colour is from the border's colours.

    Args:
        lab: (B, 32, 32, 3) CIE Lab.

    Returns:
        (B, 32, 32) in Lab units, smoothed by a pixel.
    """
    distances = np.empty(lab.shape[:3], dtype=np.float32)
    for out, image in zip(distances, lab.reshape(len(lab), -1, 3), strict=True):
        tree: Any = KDTree(image[_BORDER_PIXELS], balanced_tree=False, compact_nodes=False)
        out[:] = tree.query(image, k=[_NEIGHBOUR])[0].reshape(GRID, GRID)
    return gaussian_filter(distances, (0, 1, 1))


def object_masks(lab: np.ndarray) -> np.ndarray:
    """The pixels (B, 32, 32) of the object: Otsu's threshold (1979) of `saliency`; all False in a flat image."""
    salient = saliency(lab)
    top = salient.max((1, 2), keepdims=True)
    levels = (salient / np.maximum(top, 1e-6) * (_LEVELS - 1)).astype(np.int64)
    of_image = np.arange(len(lab))[:, None, None] * _LEVELS
    histogram = np.bincount((levels + of_image).ravel(), minlength=len(lab) * _LEVELS).reshape(-1, _LEVELS)
    below = histogram.cumsum(1) / GRID**2
    mean_below = (histogram * np.arange(_LEVELS)).cumsum(1) / GRID**2
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean_below[:, -1:] * below - mean_below) ** 2 / (below * (1 - below))
    threshold = np.nan_to_num(between, posinf=0).argmax(1)
    return (levels > threshold[:, None, None]) & (top > 1)  # less than a Lab unit is not seen


def object_boxes(masks: np.ndarray) -> np.ndarray:
    """The box that holds all but 2 % of each mask on either side: its ends (B, 2, 2) in x and y, in pixels of the grid.

    A box's centre, unlike a centroid, says little of the object's shape, which is the class's own.
    """
    count = np.maximum(masks.sum((1, 2)), 1)[:, None]
    ends = []
    for axis in (1, 2):
        below = masks.sum(axis).cumsum(1) / count
        ends.append(np.stack([(below <= 0.02).sum(1), (below < 0.98).sum(1) + 1], -1))
    return np.stack(ends, 1)
