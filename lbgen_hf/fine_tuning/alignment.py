"""The alignment of generated images with language: the generator's terms, and the discriminator that plays against it.

`Alignment` is what a training step asks of one; `TotalLoss` adds the image quality.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from lbgen_hf.fine_tuning.checkpoints import load_optimizer_state, optimizer_state
from lbgen_hf.fine_tuning.config import LbGenConfig
from lbgen_hf.rewards.clip_features import ClipFeatures
from lbgen_hf.rewards.losses import (
    Discriminator,
    discriminator_loss,
    entire_dataset_loss,
    individual_loss,
    quality_loss,
)

_ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


class Alignment(Protocol):
    """What a training step asks of an alignment.

    Attributes:
        weights: of the generator's terms, by name; a term of weight zero is not computed.
        bank_size: how many images of the base model it needs before the first step.
    """

    weights: dict[str, float]
    bank_size: int

    def start(self, features: Tensor, class_ids: Tensor, images_per_step: int, generator: torch.Generator) -> None:
        """Take the features (bank_size, D) and the classes of the base model's images; called where there is a bank."""

    def terms(self, features: Tensor, class_ids: Tensor) -> dict[str, Tensor]:
        """The generator's terms for image features (B, D) with a graph, and their classes (B,)."""
        ...

    def update(
        self, features: Tensor, class_ids: Tensor, real_ids: Tensor, generator: torch.Generator
    ) -> dict[str, float]:
        """Train the discriminator on all images of the step, from all processes; returns its losses.

        Args:
            features: (N, D) image features without a graph, in the order of the images' numbers.
            class_ids: (N,) their classes.
            real_ids: (N,) for each another class.
            generator: of anything random, on the CPU; a function of the seed and the step.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """All that changes over a run, as flat tensors."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Undo `state`."""


class PaperAlignment:
    """L_en (eq. 5) and L_in (eq. 6), without a bank. D is trained once a step, on the same images as the generator.

    Args:
        clip: has `text_features(texts)`.
        class_names: the training classes.
        config: the weights, and the settings of D.
    """

    bank_size = 0

    def __init__(self, clip: ClipFeatures, class_names: list[str], config: LbGenConfig):
        self.weights = {"entire": config.entire_weight, "individual": config.individual_weight}
        self._config = config
        self.name_features = clip.text_features(class_names).float()
        self.description_features = clip.text_features([f"photo of {name}" for name in class_names]).float()
        self.discriminator = Discriminator(
            self.name_features.shape[-1],
            config.discriminator_hidden_size,
            _ACTIVATIONS[config.discriminator_activation],
        ).to(self.name_features.device)
        self.optimizer = torch.optim.AdamW(
            self.discriminator.parameters(),
            lr=config.discriminator_learning_rate,
            betas=(0.0, 0.999),
            weight_decay=config.weight_decay,
        )

    def terms(self, features: Tensor, class_ids: Tensor) -> dict[str, Tensor]:
        terms = {}
        if self.weights["entire"]:
            terms["entire"] = entire_dataset_loss(self.discriminator(features), self._config.saturating)
        if self.weights["individual"]:
            terms["individual"] = individual_loss(features, self.description_features[class_ids])
        return terms

    def update(
        self, features: Tensor, class_ids: Tensor, real_ids: Tensor, generator: torch.Generator
    ) -> dict[str, float]:
        if not self.weights["entire"]:
            return {}
        if self._config.real_classes == "first":
            real_ids = (torch.randperm(len(features), generator=generator) % len(self.name_features)).to(real_ids)
        loss = discriminator_loss(self.discriminator(self.name_features[real_ids]), self.discriminator(features))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.discriminator.parameters(), self._config.discriminator_max_grad_norm)
        self.optimizer.step()
        return {"discriminator": loss.item()}

    def state(self) -> dict[str, Tensor]:
        weights = {f"discriminator.{name}": value for name, value in self.discriminator.state_dict().items()}
        return weights | optimizer_state("discriminator_optimizer", self.optimizer)

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.discriminator.load_state_dict(
            {name: state[f"discriminator.{name}"] for name in self.discriminator.state_dict()}
        )
        load_optimizer_state("discriminator_optimizer", self.optimizer, state)


class TotalLoss:
    """The generator's loss: the alignment's terms + lambda L_q. For the paper's alignment it is eq. 8.

    A term of weight zero is not computed, and what it alone needs is not run.

    Args:
        clip: has `image_features(images)`.
        alignment: the paper's, or another.
        scorer: images in [0, 1] to scores (B,) in [1, 5]; needed for a quality weight above zero.
        quality_weight: lambda.
    """

    def __init__(
        self,
        clip: ClipFeatures,
        alignment: Alignment,
        scorer: Callable[[Tensor], Tensor] | None = None,
        quality_weight: float = 0.1,
    ):
        self.clip, self.alignment, self.scorer = clip, alignment, scorer
        self.weights = alignment.weights | {"quality": quality_weight}

    def __call__(self, images: Tensor, class_ids: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """The loss of images.

        Args:
            images: (B, 3, H, W) in about [0, 1], with a graph.
            class_ids: (B,) each image's class.

        Returns:
            The total, its terms by name without their weights, and the image features (None when no term needs them).
        """
        terms, features = {}, None
        if any(self.alignment.weights.values()):
            features = self.clip.image_features(images).float()
            terms = self.alignment.terms(features, class_ids)
        if self.weights["quality"]:
            assert self.scorer is not None, "a quality weight needs a scorer"
            terms["quality"] = quality_loss(self.scorer(images))
        total = images.new_zeros(())
        for name, term in terms.items():
            total = total + self.weights[name] * term
        return total, terms, features
