"""The paper's losses: entire-dataset alignment (eq. 5), individual alignment (eq. 6) and quality (eq. 7)."""

from collections.abc import Callable, Sequence

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


def draw_other_classes(class_ids: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """For each image a class that is not its own, uniform over all others: the real side of L_en (sec. 3.2).

    Args:
        class_ids: (B,) int64.
        num_classes: at least 2.
        generator: on the device of `class_ids`.
    """
    others = torch.randint(num_classes - 1, class_ids.shape, generator=generator, device=class_ids.device)
    return others + (others >= class_ids)


class TotalLoss:
    """L = L_en + L_in + lambda L_q (eq. 8) of images, from a frozen CLIP and a frozen quality scorer.

    A term of weight zero is not computed, and what it alone needs is not run.

    Args:
        clip: has `image_features(images)` and `text_features(texts)`.
        class_names: the training classes.
        scorer: images in [0, 1] to scores (B,) in [1, 5]; needed for a quality weight above zero.
        entire_weight: of L_en. Its D is `discriminator`.
        individual_weight: of L_in, against "photo of {name}".
        quality_weight: lambda.
        saturating: see `entire_dataset_loss`.
        discriminator: default `Discriminator(feature_dim)`.
    """

    def __init__(
        self,
        clip,
        class_names: Sequence[str],
        scorer: Callable[[Tensor], Tensor] | None = None,
        *,
        entire_weight: float = 1.0,
        individual_weight: float = 1.0,
        quality_weight: float = 0.1,
        saturating: bool = False,
        discriminator: nn.Module | None = None,
    ):
        self.clip = clip
        self.scorer = scorer
        self.weights = {"entire": entire_weight, "individual": individual_weight, "quality": quality_weight}
        self.saturating = saturating
        self.name_features = clip.text_features(class_names).float()
        self.description_features = clip.text_features([f"photo of {name}" for name in class_names]).float()
        self.discriminator = discriminator or Discriminator(self.name_features.shape[-1])
        self.discriminator.to(self.name_features.device)

    @property
    def trains_discriminator(self) -> bool:
        return self.weights["entire"] != 0

    def __call__(self, images: Tensor, class_ids: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """The generator's loss.

        Args:
            images: (B, 3, H, W) in about [0, 1], with a graph.
            class_ids: (B,) each image's class.

        Returns:
            The total, its terms by name without their weights, and the image features (None when no term needs them).
        """
        terms, features = {}, None
        if self.weights["entire"] or self.weights["individual"]:
            features = self.clip.image_features(images).to(self.name_features.dtype)
        if self.weights["entire"]:
            terms["entire"] = entire_dataset_loss(self.discriminator(features), self.saturating)
        if self.weights["individual"]:
            terms["individual"] = individual_loss(features, self.description_features[class_ids])
        if self.weights["quality"]:
            terms["quality"] = quality_loss(self.scorer(images))
        return sum(self.weights[name] * term for name, term in terms.items()), terms, features

    def of_discriminator(self, features: Tensor, real_ids: Tensor) -> Tensor:
        """D's loss on image features (B, D), cut from their graph, and on the names of other classes (B,)."""
        return discriminator_loss(
            self.discriminator(self.name_features[real_ids]), self.discriminator(features.detach())
        )
