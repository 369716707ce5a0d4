"""The paper's losses: entire-dataset alignment (eq. 5), individual alignment (eq. 6) and quality (eq. 7)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Discriminator(nn.Sequential):
    """D: is a CLIP feature a class name's (real) or an image's (fake)? (B, feature_dim) -> one logit each, (B,).

    Args:
        feature_dim: the width of the features.
        hidden_dim: default `feature_dim`.
        activation: the paper's ReLU by default.
    """

    def __init__(self, feature_dim: int, hidden_dim: int | None = None, activation: type[nn.Module] = nn.ReLU):
        hidden_dim = hidden_dim or feature_dim
        super().__init__(nn.Linear(feature_dim, hidden_dim), activation(), nn.Linear(hidden_dim, 1), nn.Flatten(0))


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-(log D(f_cj) + log(1 - D(f_im))), eq. 5 as D sees it, on logits; the mean over the batch."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def entire_dataset_loss(fake_logits: Tensor, saturating: bool = False) -> Tensor:
    """L_en as the generator sees it: -log D(f_im), or the paper's saturating log(1 - D(f_im)); the mean over images."""
    return -F.softplus(fake_logits).mean() if saturating else F.softplus(-fake_logits).mean()


def individual_loss(image_features: Tensor, text_features: Tensor) -> Tensor:
    """L_in, eq. 6: 1 - cos of each image (B, D) with its own description (B, D), row by row; the mean over images."""
    return (1 - F.cosine_similarity(image_features, text_features, dim=-1)).mean()


def quality_loss(scores: Tensor) -> Tensor:
    """L_q, eq. 7: 1 - Q/5 for scores (B,) in [1, 5]; the mean over images."""
    return (1 - scores / 5).mean()


def sample_other_classes(class_ids: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """For each image a class that is not its own, uniform over all others: the real side of L_en (sec. 3.2).

    Args:
        class_ids: (B,) int64.
        num_classes: at least 2.
        generator: on the device of `class_ids`.
    """
    others = torch.randint(num_classes - 1, class_ids.shape, generator=generator, device=class_ids.device)
    return others + (others >= class_ids)
