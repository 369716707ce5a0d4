"""Pre-train a backbone on generated or real images, by the paper's recipe (table 5, after ConvNeXt).

Pretraining(PretrainingConfig(data="my-dataset", output_dir="backbone")).train()
"""

import copy
import logging
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup, create_transform, resolve_model_data_config
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lbgen_hf.errors import UserError, first_line
from lbgen_hf.evaluation.backbones import from_timm
from lbgen_hf.evaluation.benchmarks import Run, class_accuracy, head_columns
from lbgen_hf.evaluation.pretraining_card import PUBLISHED, write_card
from lbgen_hf.evaluation.pretraining_config import PretrainingConfig
from lbgen_hf.evaluation.pretraining_data import load_training_data, make_loader
from lbgen_hf.evaluation.statistics import accuracy
from lbgen_hf.evaluation.training import Training
from lbgen_hf.evaluation.transfer import load_validation_images
from lbgen_hf.files import write_into
from lbgen_hf.hub import create_model_repo, upload_model

logger = logging.getLogger(__name__)


class Pretraining(Training[PretrainingConfig]):
    """One run; its result is a timm model with a card."""

    repo_id: str | None = None  # where the result is published

    def train(self) -> dict[str, Any]:
        """As `Training.train`; with `push_to_hub` the repo is created first, and the result uploaded last.

        Raises:
            UserError: as there, or the Hub refuses.
        """
        config = self.config
        if config.push_to_hub and self._is_main:
            name = config.hub_model_id or config.output_dir.resolve().name
            self.repo_id = create_model_repo(name, config.hub_private)
        return super().train()

    def _open_data(self) -> int:
        config = self.config
        self.data = load_training_data(config)
        self.validation = load_validation_images(config.validation_data) if config.validation_data else None
        self.mixup = _make_mixup(config, len(self.data.class_names))
        self.loss = SoftTargetCrossEntropy() if self.mixup else LabelSmoothingCrossEntropy(config.label_smoothing)
        return self.data.num_images

    @property
    def _fingerprint(self) -> str:
        return self.data.train.fingerprint

    def _make_model(self) -> nn.Module:
        model = make_model(self.config, self.data.class_names)
        _try_step(model, self.config)
        if self.validation is not None:
            frozen = from_timm(copy.deepcopy(model), self.config.model, torch.device("cpu"))
            try:
                head_columns(frozen, self.validation)
            except UserError as error:
                given = self.config.validation_data
                raise UserError(f"validation_data {given} is not of the training classes: {error}") from error
        return model

    def _make_loader(self, first_step: int, **options: Any) -> DataLoader:
        transform = _training_transform(self.config, self.raw_model)
        return make_loader(self.data.train, self.batches, transform, first_step, self.num_steps, **options)

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = (tensor.to(self.accelerator.device, non_blocking=True) for tensor in batch)
        targets: Tensor = labels
        if self.mixup is not None:
            images, targets = self.mixup(images, labels)
        with self.accelerator.autocast():
            logits = self.model(images)
        return self.loss(logits.float(), targets)

    def _measure(self, model: nn.Module) -> dict[str, Any]:
        """Accuracy on held-out generated images and on real ones."""
        backbone = from_timm(model, self.config.model, self.accelerator.device)
        run = Run(batch_size=self.config.train_batch_size, num_workers=self.config.num_workers)
        row: dict[str, Any] = {}
        for name, images in {"held_out": self.data.held_out, "real": self.validation}.items():
            if images is not None:
                correct = class_accuracy(backbone, images, run)["data"]["correct"]
                estimate = accuracy(correct)
                row[f"{name}_accuracy"] = estimate.value
                row[f"{name}_interval"] = estimate.interval()
                row[f"{name}_images"] = len(correct)
        return row

    def _save(self, folder: Path) -> None:
        """model.safetensors and timm's config.json, with the classes' names."""
        names = list(self.data.class_names)
        save_for_hf(self.kept_model, str(folder), model_config={"label_names": names}, safe_serialization=True)

    def _finish(self, rows: list[dict[str, Any]]) -> None:
        out = self.config.output_dir

        def write(folder: Path) -> None:
            self._save(folder)
            write_card(folder, self.config, self.data, rows, self.repo_id)

        write_into(out, write)
        logger.info("The backbone is in %s: timm.create_model('local-dir:%s', pretrained=True) loads it", out, out)
        if self.repo_id:
            logger.info("published: %s", upload_model(out, self.repo_id, PUBLISHED))


def make_model(config: PretrainingConfig, class_names: tuple[str, ...]) -> nn.Module:
    """The architecture with random weights, its image size and crop in its own config.

    Raises:
        UserError: timm does not know it, or does not take its arguments.
    """
    if not timm.is_model(config.model):
        close = ", ".join(timm.list_models(f"*{config.model}*")[:5])
        raise UserError(f"timm has no architecture {config.model!r}{f'; it has {close}' if close else ''}")
    size = (3, config.image_size, config.image_size)
    overlay = {
        "input_size": size,
        "test_input_size": None,
        "crop_pct": config.crop_pct,
        "test_crop_pct": None,
        "label_names": class_names,
    }
    # Arguments that only some architectures take: those that refuse one are made without it.
    optional = {"drop_path_rate": config.drop_path_rate, "img_size": config.image_size}
    if config.layer_scale is not None:
        optional["init_values"] = config.layer_scale
    while True:
        try:
            return timm.create_model(
                config.model,
                num_classes=len(class_names),
                pretrained_cfg_overlay=overlay,
                **optional,
                **config.architecture_args,
            )
        except Exception as error:  # each architecture raises its own
            refused = next((name for name in optional if f"'{name}'" in str(error)), None)
            if refused is None:
                raise UserError(f"{config.model} does not take its arguments: {first_line(error)[:300]}") from error
            del optional[refused]


def _try_step(model: nn.Module, config: PretrainingConfig) -> None:
    """Show a copy of the model two images, as in the first step: many architectures take not every size.

    Raises:
        UserError: it does not take them, or gives no logits.
    """
    size = (min(2, config.train_batch_size), 3, config.image_size, config.image_size)
    try:
        with torch.no_grad():
            logits = copy.deepcopy(model).train()(torch.zeros(size))
        F.cross_entropy(logits, torch.zeros(size[0], dtype=torch.long))
    except Exception as error:  # each architecture raises its own
        shape = " x ".join(map(str, size))
        raise UserError(
            f"{config.model} cannot be trained on images of {shape} as it is: {first_line(error)[:300]}"
        ) from error


def _make_mixup(config: PretrainingConfig, num_classes: int) -> Mixup | None:
    if not (config.mixup or config.cutmix):
        return None
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        label_smoothing=config.label_smoothing,
        num_classes=num_classes,
    )


def _training_transform(config: PretrainingConfig, model: nn.Module) -> Any:
    """Augmentation; size, interpolation, mean and deviation are those that the model is evaluated with."""
    evaluation = resolve_model_data_config(model)
    return create_transform(
        is_training=True,
        **{name: evaluation[name] for name in ("input_size", "interpolation", "mean", "std")},
        auto_augment=config.auto_augment or None,
        color_jitter=config.color_jitter,
        scale=(config.min_crop_area, 1.0),
        hflip=config.hflip,
        re_prob=config.random_erasing,
        re_mode="pixel",
    )
