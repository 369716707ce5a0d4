"""What every quality scorer is: images in [0, 1] to scores in [1, 5], differentiable, frozen."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lbgen_hf.errors import UserError

LEVELS = ("bad", "poor", "fair", "good", "excellent")
MIN_IMAGE_SIZE = 32


def expected_level(logits: Tensor) -> Tensor:
    """Closed-set softmax over the five levels, then the expectation of 1..5 (the paper's eq. 10 and 11).

    Args:
        logits: (..., 5), from bad to excellent.

    Returns:
        (...) in [1, 5], at least float32.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.softmax(-1) @ torch.arange(1, 6, device=logits.device, dtype=logits.dtype)


def check_images(images: Tensor) -> None:
    """Refuse what no scorer can judge.

    Raises:
        UserError: not (B, 3, H, W), a side under 32 pixels, or values that are not finite.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"quality scorers take images of shape (B, 3, H, W), got {tuple(images.shape)}")
    if min(images.shape[-2:]) < MIN_IMAGE_SIZE:
        height, width = images.shape[-2:]
        raise UserError(f"images of at least {MIN_IMAGE_SIZE}x{MIN_IMAGE_SIZE} are scored, got {width}x{height}")
    if not images.isfinite().all():
        raise UserError("some pixels are not finite (NaN or infinity), so the image has no quality")


class QualityScorer(nn.Module, ABC):
    """`scorer(images) -> scores`, one for training and evaluation.

    Images are (B, 3, H, W) of any floating dtype, nominally in [0, 1]; values outside are not clamped, so that their
    gradient lives. Scores are (B,) in [1, 5], at least float32, on the images' device: the scorer may sit on another.
    `freeze()` after loading: the gradient goes through the weights to the images, never into the weights.
    """

    def freeze(self) -> "QualityScorer":
        return self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, images: Tensor) -> Tensor:
        """Score images.

        Raises:
            UserError: see `check_images`.
        """
        check_images(images)
        precise = torch.promote_types(images.dtype, torch.float32)
        scores = self._score(images.to(self.device, precise))
        return scores.to(images.device, torch.promote_types(scores.dtype, torch.float32))

    @abstractmethod
    def _score(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) on the scorer's device, float32 or float64, to (B,) in [1, 5]."""
