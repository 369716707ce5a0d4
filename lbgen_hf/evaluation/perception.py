"""What detection and segmentation share: the pyramid of a pre-trained backbone's features, and shares of the images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn

from lbgen_hf.errors import UserError, first_line
from lbgen_hf.evaluation.splits import SPLIT_SEED, Indices, shuffled
from lbgen_hf.files import BROKEN_IMAGE

STRIDES = [4, 8, 16, 32]


def load_features(checkpoint: str) -> Any:
    """The pyramid of a timm backbone with its weights: images to features at `STRIDES`, without the head.

    Args:
        checkpoint: a folder or a Hub id of a timm model, or the name of a pretrained timm model.

    Returns:
        timm's module, with `feature_info` and `pretrained_cfg`.

    Raises:
        UserError: there is no such checkpoint, it is no timm model, has no features at these strides, or takes only
            images of some sizes.
    """
    name = _timm_name(checkpoint)
    try:
        untrained: Any = timm.create_model(name, features_only=True)
        reductions = untrained.feature_info.reduction()
    except Exception as error:
        raise UserError(f"timm cannot make a feature pyramid of {checkpoint}: {first_line(error)[:300]}") from error
    if not set(STRIDES) <= set(reductions):
        raise UserError(
            f"{checkpoint} has features at the strides {reductions}; detection and segmentation need {STRIDES}, "
            "as a ResNet has"
        )
    indices = [reductions.index(stride) for stride in STRIDES]
    try:
        timm.create_model(name, pretrained=True)  # strict, as features alone are not: they may stay random
        features: Any = timm.create_model(name, pretrained=True, features_only=True, out_indices=indices)
    except Exception as error:
        raise UserError(f"timm cannot load the weights of {checkpoint}: {first_line(error)[:300]}") from error
    _check_sizes(features, checkpoint)
    return features


def _check_sizes(features: nn.Module, checkpoint: str) -> None:
    """Show it an image that is small and not square."""
    try:
        with torch.no_grad():
            features.eval()(torch.zeros(1, 3, 64, 96))
    except Exception as error:  # each architecture raises its own
        raise UserError(
            f"{checkpoint} does not take images of every size, as detection and segmentation need and a ResNet does: "
            f"{first_line(error)[:300]}"
        ) from error
    features.train()


def _timm_name(checkpoint: str) -> str:
    path = Path(checkpoint)
    if not path.is_dir():
        return checkpoint if timm.is_model(checkpoint) else f"hf-hub:{checkpoint}"
    try:
        settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path / 'config.json'}: {first_line(error)}") from error
    if "architecture" not in settings:
        raise UserError(f"{path / 'config.json'} names no timm `architecture`")
    return f"local-dir:{path}"


def share_of(num_images: int, fraction: float) -> Indices:
    """Sorted indices of a share of the images, at least one; a smaller share's images are among a larger's."""
    return np.sort(shuffled(np.arange(num_images), SPLIT_SEED)[: max(1, round(fraction * num_images))])


def read_image(path: Path) -> Image.Image:
    """An image file in the mode that it has.

    Raises:
        UserError: it cannot be read; the message names it.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except BROKEN_IMAGE as error:
        raise UserError(f"cannot read the image {path}: {first_line(error)}") from error


def require_layout(root: Path, needed: list[str]) -> None:
    """Make sure that a dataset has its folders and files.

    Raises:
        UserError: it lacks some; the message names these and says what is there.
    """
    missing = [name for name in needed if not (root / name).exists()]
    if missing:
        there = ", ".join(sorted(path.name for path in root.iterdir())[:10]) if root.is_dir() else "no such folder"
        raise UserError(f"expected {', '.join(missing)} in {root}, found {there or 'nothing'}")
