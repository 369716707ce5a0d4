"""Context-swap alignment in training: the bank, the replay, and the discriminator's updates."""

import torch
from torch import Tensor, nn

from lbgen_hf.fine_tuning.checkpoints import load_optimizer_state, optimizer_state
from lbgen_hf.fine_tuning.config import LbGenConfig
from lbgen_hf.rewards.clip_features import ClipFeatures
from lbgen_hf.rewards.context_swap import (
    ConditionalDiscriminator,
    class_loss,
    gradient_penalty,
    image_directions,
    swap_class,
)
from lbgen_hf.rewards.losses import discriminator_loss, entire_dataset_loss

_PENALTY_WEIGHT = 0.1
_WARMUP_UPDATES = 150  # of D on the bank alone, so that the generator never meets a blind D
_REPLAYED = 2  # images of earlier steps for each of this one, when D is trained


class ContextSwapAlignment:
    """L_context, with a class-conditional D against the bank of the base model's images, and L_class.

    Args:
        clip: has `text_features(texts)`.
        class_names: the training classes.
        config: the weights, and the settings of D.
    """

    def __init__(self, clip: ClipFeatures, class_names: list[str], config: LbGenConfig):
        self.weights = {"context": config.context_weight, "class": config.class_weight}
        self.bank_size = config.context_bank_size if config.context_weight else 0
        self._config = config
        self._texts = clip.text_features([f"photo of {name}" for name in class_names]).float()
        hidden = config.discriminator_hidden_size or 128
        discriminator = ConditionalDiscriminator(self._texts.shape[-1], len(class_names), hidden)
        self.discriminator = discriminator.to(self._texts.device)
        self.optimizer = torch.optim.AdamW(
            self.discriminator.parameters(),
            lr=config.discriminator_learning_rate,
            betas=(0.0, 0.99),
            weight_decay=config.weight_decay,
        )
        # Features and classes of the base model's images, and of the latest generated ones.
        self._bank = self._replay = (self._texts[:0], torch.zeros(0, dtype=torch.long, device=self._texts.device))
        self._directions = self._texts

    def start(self, features: Tensor, class_ids: Tensor, images_per_step: int, generator: torch.Generator) -> None:
        """Take the base model's images (N, D) of classes (N,) as the bank, and train D on them alone."""
        self._set_bank(features, class_ids)
        self.discriminator.standardise(features)
        self._replay = features, class_ids
        for _ in range(_WARMUP_UPDATES):
            rows = torch.randint(len(features), (images_per_step,), generator=generator).to(features.device)
            self._update_once(features[rows], class_ids[rows], generator)

    def _set_bank(self, features: Tensor, class_ids: Tensor) -> None:
        self._bank = features, class_ids
        if self._config.context_direction == "image" and len(features):
            self._directions = image_directions(self._texts, features, class_ids)

    def terms(self, features: Tensor, class_ids: Tensor) -> dict[str, Tensor]:
        terms = {}
        if self.weights["context"]:
            terms["context"] = entire_dataset_loss(self.discriminator(features, class_ids), self._config.saturating)
        if self.weights["class"]:
            terms["class"] = class_loss(features, self._texts, class_ids, self._config.class_scale)
        return terms

    def update(
        self, features: Tensor, class_ids: Tensor, real_ids: Tensor, generator: torch.Generator
    ) -> dict[str, float]:
        if not self.weights["context"]:
            return {}
        for _ in range(self._config.discriminator_updates):
            loss = self._update_once(features, class_ids, generator)
        latest = zip(self._replay, (features, class_ids), strict=True)
        self._replay = tuple(torch.cat(both)[-self.bank_size :] for both in latest)
        return {"discriminator": loss.item()}

    def _update_once(self, features: Tensor, class_ids: Tensor, generator: torch.Generator) -> Tensor:
        """One update of D on images and replayed ones, as fake, and on as many swapped bank images, as real."""
        old_features, old_ids = self._replay
        rows = torch.randint(len(old_ids), (_REPLAYED * len(class_ids),), generator=generator).to(old_ids.device)
        fake, class_ids = torch.cat([features, old_features[rows]]), torch.cat([class_ids, old_ids[rows]])
        real = self._sample_real(class_ids, generator)
        loss = discriminator_loss(self.discriminator(real, class_ids), self.discriminator(fake, class_ids))
        penalty = gradient_penalty(self.discriminator, self._sample_real(class_ids, generator), class_ids)
        self.optimizer.zero_grad(set_to_none=True)
        (loss + _PENALTY_WEIGHT * penalty).backward()
        nn.utils.clip_grad_norm_(self.discriminator.parameters(), self._config.discriminator_max_grad_norm)
        self.optimizer.step()
        return loss.detach()

    def _sample_real(self, class_ids: Tensor, generator: torch.Generator) -> Tensor:
        """For each class (B,) a random bank image, whatever its class, moved to it: (B, D)."""
        features, own_ids = self._bank
        rows = torch.randint(len(own_ids), class_ids.shape, generator=generator).to(own_ids.device)
        return swap_class(features[rows], self._directions, own_ids[rows], class_ids, self._config.context_shift)

    def state(self) -> dict[str, Tensor]:
        state = {f"discriminator.{name}": value for name, value in self.discriminator.state_dict().items()}
        state |= optimizer_state("discriminator_optimizer", self.optimizer)
        for name, (features, class_ids) in {"bank": self._bank, "replay": self._replay}.items():
            state |= {f"{name}.features": features, f"{name}.class_ids": class_ids}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        weights = {name: state[f"discriminator.{name}"] for name in self.discriminator.state_dict()}
        self.discriminator.load_state_dict(weights)
        load_optimizer_state("discriminator_optimizer", self.optimizer, state)
        device = self._texts.device
        self._set_bank(state["bank.features"].to(device), state["bank.class_ids"].to(device))
        self._replay = state["replay.features"].to(device), state["replay.class_ids"].to(device)
