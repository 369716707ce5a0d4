"""Pre-train a backbone on generated or real images, by the paper's recipe (table 5, after ConvNeXt).

    Pretraining(PretrainingConfig(data="my-dataset", output_dir="backbone")).train()

Everything random in a step is a function of (seed, step, process): its images, their augmentation, mixup and stochastic
depth. So a checkpoint is the weights, their average, the optimizer and a number, and a resumed run ends with the very
bytes of an uninterrupted one.
"""

import copy
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from timm.data import Mixup, create_transform, resolve_model_data_config
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import save_for_hf
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.backbones import from_timm
from lbgen_hf.evaluation.benchmarks import Run, class_accuracy
from lbgen_hf.evaluation.images import LabelledImages
from lbgen_hf.evaluation.pretraining_card import push, write_card
from lbgen_hf.evaluation.pretraining_config import PretrainingConfig
from lbgen_hf.evaluation.pretraining_data import (
    Batches,
    derived_seed,
    load_training_data,
    make_loader,
    open_images,
    seed_everything,
)
from lbgen_hf.evaluation.statistics import accuracy
from lbgen_hf.files import require_writable
from lbgen_hf.fine_tuning.checkpoints import (
    Journal,
    find_checkpoint,
    load_optimizer_state,
    load_state,
    optimizer_state,
    remove_old,
    save_state,
    write_folder,
)

logger = logging.getLogger(__name__)

_LOG_SECONDS = 20


class Pretraining:
    """One run.

    Args:
        config: its settings.

    Raises:
        UserError: the data or the architecture are not as they must be.
    """

    def __init__(self, config: PretrainingConfig) -> None:
        self.config = config
        require_writable(config.output_dir)
        self.checkpoint = find_checkpoint(config.output_dir, config.resume_from_checkpoint)
        self.data = load_training_data(config)
        self.validation = open_images(config.validation_data) if config.validation_data else None
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=config.report_to,
            project_dir=config.output_dir,
        )
        self.batches = Batches(
            self.data.num_images,
            config.train_batch_size,
            config.gradient_accumulation_steps,
            self.accelerator.num_processes,
            self.accelerator.process_index,
            config.seed,
        )
        if not self.batches.steps_per_epoch:
            raise UserError(
                f"{self.data.num_images} training images are fewer than the {self.batches.images_per_step} of a step"
            )
        self.schedule_steps = config.num_train_epochs * self.batches.steps_per_epoch
        self.num_steps = min(config.max_train_steps or self.schedule_steps, self.schedule_steps)

        seed_everything(derived_seed(config.seed, "weights"))
        model = make_model(config, self.data.class_names)
        self.average = ModelEmaV3(model, decay=config.ema_decay) if config.ema_decay else None
        if self.average is not None:
            self.average.to(self.accelerator.device)
        groups = param_groups_weight_decay(model, config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.999))
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.mixup = _make_mixup(config, len(self.data.class_names))
        self.loss = SoftTargetCrossEntropy() if self.mixup else LabelSmoothingCrossEntropy(config.label_smoothing)

    @property
    def raw_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    @property
    def kept_model(self) -> nn.Module:
        """What a user gets: the average, or the last weights."""
        return self.average.module if self.average is not None else self.raw_model

    def train(self) -> dict[str, Any]:
        """Train to the end and write the backbone.

        Returns:
            The last row of metrics.jsonl.

        Raises:
            UserError: an image cannot be read, the loss is not finite, or the checkpoint is of another run.
        """
        first_step = self._resume()
        journal = Journal(self.config.output_dir / "metrics.jsonl", first_step) if self._is_main else None
        loader = make_loader(
            self.data.train,
            self.batches,
            _training_transform(self.config, self.raw_model),
            first_step,
            self.num_steps,
            self.config.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        if self.config.report_to:
            self.accelerator.init_trackers("train_backbone", config=self.config.fixed_settings())
        batches, loss = iter(loader), None
        said = started = time.monotonic()
        for step in range(first_step, self.num_steps):
            loss = self._step(step, batches)
            done = step + 1
            if time.monotonic() - said > _LOG_SECONDS or done in (first_step + 1, self.num_steps):
                said = time.monotonic()
                self._say(done, loss, (done - first_step) * self.batches.images_per_step / (said - started))
            if done % self.config.checkpointing_steps == 0 or done == self.num_steps:
                self._save_checkpoint(done)
            if done < self.num_steps and done % (self.batches.steps_per_epoch * self.config.validation_epochs) == 0:
                self._validate(done, loss, journal)
        self._validate(self.num_steps, loss, journal)
        self.accelerator.end_training()
        return self._finish(journal)

    @property
    def _is_main(self) -> bool:
        return self.accelerator.is_main_process

    def _step(self, step: int, batches) -> float:
        """One optimizer step; returns the mean loss of this process's micro-batches."""
        self.model.train()
        rate = learning_rate(step, self.schedule_steps, self.batches.steps_per_epoch, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = 0.0
        for micro in range(self.config.gradient_accumulation_steps):
            batch = next(batches)
            if isinstance(batch, str):
                raise UserError(batch)
            images, labels = (tensor.to(self.accelerator.device, non_blocking=True) for tensor in batch)
            seed_everything(derived_seed(self.config.seed, "step", step, micro, self.accelerator.process_index))
            targets: Tensor = labels
            if self.mixup is not None:
                images, targets = self.mixup(images, labels)
            last = micro + 1 == self.config.gradient_accumulation_steps
            if last:
                loss = self._backward(images, targets)
            else:
                with self.accelerator.no_sync(self.model):
                    loss = self._backward(images, targets)
            total += loss / self.config.gradient_accumulation_steps
        if self.config.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.raw_model)
        if not math.isfinite(total):
            raise UserError(f"the loss is not finite at step {step + 1}: give a smaller --learning_rate")
        return total

    def _backward(self, images: Tensor, targets: Tensor) -> float:
        with self.accelerator.autocast():
            logits = self.model(images)
        loss = self.loss(logits.float(), targets)
        self.accelerator.backward(loss / self.config.gradient_accumulation_steps)
        return loss.item()

    def _say(self, done: int, loss: float, rate: float) -> None:
        if self._is_main:
            logger.info("step %d of %d: loss %.3f, %.0f images/s", done, self.num_steps, loss, rate)
        if self.config.report_to:
            self.accelerator.log({"loss": loss, "images_per_second": rate}, step=done)

    def _save_checkpoint(self, step: int) -> None:
        if self._is_main:
            write_folder(self.config.output_dir / f"checkpoint-{step}", lambda folder: self._write(folder, step))
            remove_old(self.config.output_dir, self.config.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path, step: int) -> None:
        """The backbone for use, and the state to resume from."""
        save_backbone(self.kept_model, folder, self.data.class_names)
        state = {f"model.{name}": value for name, value in self.raw_model.state_dict().items()}
        if self.average is not None:
            state |= {f"average.{name}": value for name, value in self.average.module.state_dict().items()}
        state |= optimizer_state("optimizer", self._plain_optimizer)
        if self.accelerator.scaler is not None:
            state |= {f"scaler.{k}": torch.tensor(v) for k, v in self.accelerator.scaler.state_dict().items()}
        state = {name: value.detach().clone() for name, value in state.items()}  # no shared memory
        save_state(folder, step, state, self._fixed_settings())

    def _resume(self) -> int:
        """Put a checkpoint's state back; returns how many steps are done."""
        if self.checkpoint is None:
            return 0
        step, state = load_state(self.checkpoint, self._fixed_settings())

        def part(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{name}."): v for key, v in state.items() if key.startswith(f"{name}.")}

        self.raw_model.load_state_dict(part("model"))
        if self.average is not None:
            self.average.module.load_state_dict(part("average"))
        load_optimizer_state("optimizer", self._plain_optimizer, state)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict({k: v.item() for k, v in part("scaler").items()})
        if self._is_main:
            logger.info("resumed from %s", self.checkpoint)
        return step

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _fixed_settings(self) -> dict[str, str]:
        images = self.data.train
        content = images.fingerprint if isinstance(images, LabelledImages) else str(images.num_images)
        return {
            **self.config.fixed_settings(),
            "num_processes": str(self.accelerator.num_processes),
            "images": content,
        }

    def _validate(self, step: int, loss: float | None, journal: Journal | None) -> None:
        """Accuracy on held-out generated images and on real ones, of the kept weights; by the main process."""
        if journal is not None and all(row["step"] != step for row in journal.rows):
            row: dict[str, Any] = {"epoch": step / self.batches.steps_per_epoch}
            if loss is not None:
                row["loss"] = loss
            sets = {"held_out": self.data.held_out, "real": self.validation}
            backbone = from_timm(copy.deepcopy(self.kept_model), self.config.model, self.accelerator.device)
            for name, images in sets.items():
                if images is not None:
                    run = Run(batch_size=self.config.train_batch_size, num_workers=self.config.num_workers)
                    correct = class_accuracy(backbone, images, run)["data"]["correct"]
                    estimate = accuracy(correct)
                    row[f"{name}_accuracy"] = estimate.value
                    row[f"{name}_interval"] = estimate.interval()
                    row[f"{name}_images"] = len(correct)
            journal.add(step, row)
            logger.info("%s", json.dumps(row))
        self.accelerator.wait_for_everyone()

    def _finish(self, journal: Journal | None) -> dict[str, Any]:
        if journal is None:
            return {}
        out = self.config.output_dir
        save_backbone(self.kept_model, out, self.data.class_names)
        write_card(out, self.config, self.data, journal.rows)
        logger.info("The backbone is in %s: timm.create_model('local-dir:%s', pretrained=True) loads it", out, out)
        if self.config.push_to_hub:
            logger.info("published at %s", push(out, self.config))
        return journal.rows[-1]


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
        except TypeError as error:
            refused = next((name for name in optional if f"'{name}'" in str(error)), None)
            if refused is None:
                raise UserError(f"{config.model} does not take its arguments: {error}") from error
            del optional[refused]


def learning_rate(step: int, schedule_steps: int, steps_per_epoch: int, config: PretrainingConfig) -> float:
    """Linear warm-up from zero, then a cosine to `min_learning_rate`; of the step that is to be taken."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, schedule_steps - warmup)
    span = config.learning_rate - config.min_learning_rate
    return config.min_learning_rate + span * (1 + math.cos(math.pi * progress)) / 2


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


def save_backbone(model: nn.Module, folder: Path, class_names: tuple[str, ...]) -> None:
    """model.safetensors and timm's config.json, with the classes' names."""
    save_for_hf(model, str(folder), model_config={"label_names": list(class_names)}, safe_serialization=True)
