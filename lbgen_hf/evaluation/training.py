"""Training that can be killed at any moment and resumed exactly: what pre-training, detection and segmentation share.

Everything random in a step is a function of (seed, step, process): its images, their augmentation, and what the model
itself samples. So a checkpoint is the weights, their average, the optimizer and a number, and a resumed run ends with
the very bytes of an uninterrupted one.
"""

import abc
import contextlib
import copy
import datetime
import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import InitProcessGroupKwargs
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.seeded_batches import Batches, derived_seed, seed_everything
from lbgen_hf.evaluation.training_config import TrainingConfig
from lbgen_hf.files import locked, require_creatable, write_folder, write_into
from lbgen_hf.fine_tuning.checkpoints import (
    Journal,
    find_checkpoint,
    load_optimizer_state,
    load_state,
    optimizer_state,
    remove_old,
    save_state,
)
from lbgen_hf.fine_tuning.launch import make_accelerator

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=TrainingConfig)

_LOG_SECONDS = 20
_VALIDATION_TIMEOUT = datetime.timedelta(hours=12)  # the other processes wait while the main one measures


class Training(abc.ABC, Generic[Config]):
    """One run.

    Args:
        config: its settings.

    Raises:
        UserError: the data, the architecture or the tracker are not as they must be, or the machine or the launcher
            cannot do what the config asks for.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.accelerator = make_accelerator(
            config.mixed_precision,
            config.report_to or "none",
            config.output_dir,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_VALIDATION_TIMEOUT)],
        )
        require_creatable(config.output_dir)
        self.checkpoint = find_checkpoint(config.output_dir, config.resume_from_checkpoint)
        num_images = self._open_data()
        self.batches = Batches(
            num_images,
            config.train_batch_size,
            config.gradient_accumulation_steps,
            self.accelerator.num_processes,
            self.accelerator.process_index,
            config.seed,
        )
        if not self.batches.steps_per_epoch:
            raise UserError(f"{num_images} training images are fewer than the {self.batches.images_per_step} of a step")
        self.schedule_steps = config.num_train_epochs * self.batches.steps_per_epoch
        self.num_steps = min(config.max_train_steps or self.schedule_steps, self.schedule_steps)

        seed_everything(derived_seed(config.seed, "weights"))
        model = self._make_model()
        self.average = ModelEmaV3(model, decay=config.ema_decay) if config.ema_decay else None
        if self.average is not None:
            self.average.to(self.accelerator.device)
        groups = param_groups_weight_decay(model, config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.999))
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    @abc.abstractmethod
    def _open_data(self) -> int:
        """Open all data; returns the number of training images."""

    @property
    @abc.abstractmethod
    def _fingerprint(self) -> str:
        """Changes with the training images, as far as their files' names and sizes tell."""

    @abc.abstractmethod
    def _make_model(self) -> nn.Module:
        """The model before its first step; its random weights come from torch's generator."""

    @abc.abstractmethod
    def _make_loader(self, first_step: int, **options: Any) -> DataLoader:
        """The micro-batches of the steps from `first_step` on; options of the `DataLoader`."""

    @abc.abstractmethod
    def _loss(self, batch: Any) -> Tensor:
        """The mean loss of a micro-batch on the CPU; random numbers are seeded."""

    @abc.abstractmethod
    def _measure(self, model: nn.Module) -> dict[str, Any]:
        """Metrics of a copy of the kept weights."""

    @abc.abstractmethod
    def _save(self, folder: Path) -> None:
        """Write the kept weights for use."""

    def _finish(self, rows: list[dict[str, Any]]) -> None:
        """Write the result of a run that is done; `rows` are those of metrics.jsonl."""
        write_into(self.config.output_dir, self._save)

    @property
    def raw_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    @property
    def kept_model(self) -> nn.Module:
        """What a user gets: the average, or the last weights."""
        return self.average.module if self.average is not None else self.raw_model

    def train(self) -> dict[str, Any]:
        """Train to the end and write the result.

        Returns:
            The last row of metrics.jsonl.

        Raises:
            UserError: another process writes to the folder, an image cannot be read, the loss is not finite, or the
                checkpoint is of another run.
        """
        with locked(self.config.output_dir) if self._is_main else contextlib.nullcontext():
            return self._train()

    def _train(self) -> dict[str, Any]:
        first_step = self._resume()
        journal = Journal(self.config.output_dir / "metrics.jsonl", first_step) if self._is_main else None
        loader = self._make_loader(
            first_step, num_workers=self.config.num_workers, pin_memory=self.accelerator.device.type == "cuda"
        )
        self.accelerator.init_trackers(type(self).__name__.lower(), config=self.config.fixed_settings())
        batches, loss = iter(loader), None
        said = started = time.monotonic()
        for step in range(first_step, self.num_steps):
            loss = self._step(step, batches)
            done = step + 1
            if time.monotonic() - said > _LOG_SECONDS or done in (first_step + 1, self.num_steps):
                said = time.monotonic()
                self._say(done, loss, (done - first_step) * self.batches.images_per_step / (said - started))
            if done < self.num_steps and done % (self.batches.steps_per_epoch * self.config.validation_epochs) == 0:
                self._validate(done, loss, journal)  # before the checkpoint: a run resumed from this one has the row
            if done % self.config.checkpointing_steps == 0 or done == self.num_steps:
                self._save_checkpoint(done)
        self._validate(self.num_steps, loss, journal)
        self.accelerator.end_training()
        if journal is None:
            return {}
        self._finish(journal.rows)
        return journal.rows[-1]

    @property
    def _is_main(self) -> bool:
        return self.accelerator.is_main_process

    def _step(self, step: int, batches: Iterator) -> float:
        """One optimizer step; returns the mean loss of this process's micro-batches."""
        self.model.train()
        rate = learning_rate(step, self.schedule_steps, self.batches.steps_per_epoch, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        accumulation = self.config.gradient_accumulation_steps
        total = 0.0
        for micro in range(accumulation):
            batch = next(batches)
            if isinstance(batch, str):
                raise UserError(batch)
            seed_everything(derived_seed(self.config.seed, "step", step, micro, self.accelerator.process_index))
            if micro + 1 == accumulation:
                total += self._backward(batch) / accumulation
            else:
                with self.accelerator.no_sync(self.model):
                    total += self._backward(batch) / accumulation
        if self.config.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.raw_model)
        if not math.isfinite(total):
            raise UserError(f"the loss is not finite at step {step + 1}: give a smaller --learning_rate")
        return total

    def _backward(self, batch: Any) -> float:
        loss = self._loss(batch)
        self.accelerator.backward(loss / self.config.gradient_accumulation_steps)
        return loss.item()

    def _say(self, done: int, loss: float, rate: float) -> None:
        if self._is_main:
            logger.info("step %d of %d: loss %.3f, %.0f images/s", done, self.num_steps, loss, rate)
        self.accelerator.log({"loss": loss, "images_per_second": rate}, step=done)

    def _save_checkpoint(self, step: int) -> None:
        if self._is_main:
            write_folder(self.config.output_dir / f"checkpoint-{step}", lambda folder: self._write(folder, step))
            remove_old(self.config.output_dir, self.config.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path, step: int) -> None:
        """The weights for use, and the state to resume from."""
        self._save(folder)
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
        if step > self.num_steps:
            raise UserError(
                f"{self.checkpoint} has done {step} steps, more than the {self.num_steps} that were asked for"
            )
        if self._is_main:
            logger.info("resumed from %s", self.checkpoint)
        return step

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _fixed_settings(self) -> dict[str, str]:
        return {
            **self.config.fixed_settings(),
            "mixed_precision": self.accelerator.mixed_precision,  # accelerate's, where the config has none
            "num_processes": str(self.accelerator.num_processes),
            "images": self._fingerprint,
        }

    def _validate(self, step: int, loss: float | None, journal: Journal | None) -> None:
        """Measure the kept weights, by the main process."""
        if journal is not None and all(row["step"] != step for row in journal.rows):
            row: dict[str, Any] = {"epoch": step / self.batches.steps_per_epoch}
            if loss is not None:
                row["loss"] = loss
            row |= self._measure(copy.deepcopy(self.kept_model))
            journal.add(step, row)
            logger.info("%s", json.dumps(row))
        self.accelerator.wait_for_everyone()


def learning_rate(step: int, schedule_steps: int, steps_per_epoch: int, config: TrainingConfig) -> float:
    """Linear warm-up from zero, then a cosine to `min_learning_rate`; of the step that is to be taken."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, schedule_steps - warmup)
    span = config.learning_rate - config.min_learning_rate
    return config.min_learning_rate + span * (1 + math.cos(math.pi * progress)) / 2
