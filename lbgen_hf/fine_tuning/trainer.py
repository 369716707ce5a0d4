"""`LbGenTrainer`: the loop of a fine-tuning run, with its checkpoints, journals, validation and publication."""

import contextlib
import dataclasses
import io
import logging
import shutil
import time
from pathlib import Path

from torchvision.utils import make_grid, save_image

from lbgen_hf.class_names import load_class_names
from lbgen_hf.errors import UserError
from lbgen_hf.files import locked, require_creatable, write_atomically, write_folder
from lbgen_hf.fine_tuning.card import PUBLISHED, create_repo, write_card
from lbgen_hf.fine_tuning.checkpoints import (
    Journal,
    find_checkpoint,
    load_state,
    remove_old,
    save_state,
)
from lbgen_hf.fine_tuning.config import LbGenConfig
from lbgen_hf.fine_tuning.launch import make_accelerator
from lbgen_hf.fine_tuning.lora import averaged, save_lora
from lbgen_hf.fine_tuning.step import TrainingStep
from lbgen_hf.fine_tuning.validation import Validation, choose_step
from lbgen_hf.hub import loading, upload_model
from lbgen_hf.pipeline_lbgen import LORA_FILE, is_lora
from lbgen_hf.progress import progress
from lbgen_hf.rewards.clip_features import check_clip
from lbgen_hf.rewards.quality import check_scorer
from lbgen_hf.shipped import LBGEN_TINY, resolve

logger = logging.getLogger(__name__)

JOURNALS = ("training.jsonl", "validation.jsonl")


class LbGenTrainer:
    """Fine-tunes a LoRA as a config says: `LbGenTrainer(LbGenConfig(output_dir="lora")).train()`.

    Under `accelerate launch` every process makes one; the images of a step are split over them.

    Args:
        config: the run's settings.

    Raises:
        UserError: the machine or the launcher cannot do what the config asks for, or the output folder cannot be
            written.
    """

    def __init__(self, config: LbGenConfig):
        self.accelerator = make_accelerator(config.mixed_precision, config.report_to, config.output_dir)
        self.config = dataclasses.replace(config, mixed_precision=self.accelerator.mixed_precision)
        _check_sources(config)
        require_creatable(config.output_dir)

    @property
    def is_main_process(self) -> bool:
        return self.accelerator.is_main_process

    def train(self) -> Path:
        """Train, or resume, and write the LoRA with its card.

        Returns:
            The output folder.

        Raises:
            UserError: another run writes or wrote to the folder, a model cannot be loaded, the Hub refuses, or a loss,
                a gradient or the LoRA is not finite.
        """
        with locked(self.config.output_dir) if self.is_main_process else contextlib.nullcontext():
            return self._train()

    def _train(self) -> Path:
        config = self.config
        checkpoint = find_checkpoint(config.output_dir, config.resume_from_checkpoint)
        start, state = load_state(checkpoint, self._settings()) if checkpoint else (0, None)
        repo_id = create_repo(config) if config.push_to_hub and self.is_main_process else None
        logger.info("Loading %s", config.pretrained_model_name_or_path)
        step = TrainingStep(config, self.accelerator)
        if state is None:
            step.start()
        else:
            step.load_state(state)
        validation = Validation(step) if config.validation_steps else None
        if self.is_main_process:
            if checkpoint:  # it may be another folder's, or of before what the journals here tell
                for kept in filter(Path.is_file, (checkpoint / name for name in JOURNALS)):
                    write_atomically(config.output_dir / kept.name, kept.read_bytes())
            self._losses, self._metrics = (
                Journal(config.output_dir / name, start if checkpoint else -1) for name in JOURNALS
            )
            if checkpoint and (kept := checkpoint / self._best.name).is_dir():
                write_folder(self._best, lambda best: shutil.copytree(kept, best, dirs_exist_ok=True))
            self._announce(step)
        self.accelerator.init_trackers("lbgen", {name: str(value) for name, value in config.settings().items()})

        if validation and start == 0:
            self._validate(validation, step, 0)
        todo = range(start, step.num_steps)
        for index in progress(
            todo, total=step.num_steps, done=start, name="training", disable=not self.is_main_process
        ):
            began = time.monotonic()
            losses, done = step(index), index + 1
            self.accelerator.log(losses | {"seconds": time.monotonic() - began}, step=done)
            if self.is_main_process:
                self._losses.add(done, losses)
            last = done == step.num_steps
            if validation and (last or done % config.validation_steps == 0):
                self._validate(validation, step, done)
            if last or done % config.checkpointing_steps == 0:
                self._save_checkpoint(step, done)
        if self.is_main_process:
            self._finish(step, repo_id)
        self.accelerator.end_training()
        return config.output_dir

    @property
    def _best(self) -> Path:
        """The LoRA of the step that the validation metrics select, so far."""
        return self.config.output_dir / "best"

    def _settings(self) -> dict[str, str]:
        """What must not change when this run is resumed."""
        config = self.config
        images = config.train_batch_size * config.gradient_accumulation_steps * self.accelerator.num_processes
        settings = config.fixed_settings() | {"images_per_step": str(images)}
        if config.lr_scheduler in ("linear", "cosine"):  # the learning rate depends on the number of steps
            settings |= {name: str(getattr(config, name)) for name in ("max_train_steps", "num_train_epochs")}
        return settings

    def _announce(self, step: TrainingStep) -> None:
        epochs = step.num_steps / step.steps_per_epoch
        weights = sum(parameter.numel() for parameter in step.parameters) / 1e6
        logger.info(
            f"{len(step.class_names)} classes; {step.images_per_step} images a step on"
            f" {self.accelerator.num_processes} process(es); {step.num_steps} steps, {epochs:.3g} epochs;"
            f" {weights:.3g} M LoRA parameters"
        )
        if self.config.validation_steps and not self.config.eval_clip_model:
            logger.info("Class accuracy is under the reward's own CLIP; --eval_clip_model gives an independent one.")

    def _validate(self, validation: Validation, step: TrainingStep, done: int) -> None:
        """Measure, log, and keep the LoRA if it is the best so far."""
        metrics, images = validation()
        if not self.is_main_process:
            return
        self._metrics.add(done, metrics)
        folder, columns = self.config.output_dir / "validation", self.config.validation_images_per_class
        folder.mkdir(exist_ok=True)
        encoded = io.BytesIO()
        save_image(images, encoded, format="png", nrow=columns)
        write_atomically(folder / f"step-{done:06d}.png", encoded.getvalue())
        if choose_step(self._metrics.rows) == done:
            with averaged(step.average, step.parameters):
                write_folder(self._best, lambda best: save_lora(step.unet, best))
        self.accelerator.log({f"validation/{name}": value for name, value in metrics.items()}, step=done)
        grid = make_grid(images, nrow=columns).permute(1, 2, 0)[None]
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                tracker.log_images({"validation": grid.numpy()}, step=done)
        logger.info(f"step {done}: " + ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))

    def _save_checkpoint(self, step: TrainingStep, done: int) -> None:
        """Write `checkpoint-{done}/`: the averaged LoRA for use, and the state to resume from."""
        if self.is_main_process:

            def write(folder: Path) -> None:
                save_state(folder, done, step.state(), self._settings())
                with averaged(step.average, step.parameters):
                    save_lora(step.unet, folder)
                for name in JOURNALS:
                    shutil.copyfile(self.config.output_dir / name, folder / name)
                if self._best.is_dir():  # a run that is resumed here goes back to it
                    shutil.copytree(self._best, folder / self._best.name)

            write_folder(self.config.output_dir / f"checkpoint-{done}", write)
            remove_old(self.config.output_dir, self.config.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()

    def _finish(self, step: TrainingStep, repo_id: str | None) -> None:
        """Write the LoRA with its card, and upload them if asked to."""
        config, rows, kept = self.config, self._metrics.rows, step.num_steps
        if config.keep == "best":
            kept = choose_step(rows)
            write_atomically(config.output_dir / LORA_FILE, (self._best / LORA_FILE).read_bytes())
        else:
            with averaged(step.average, step.parameters):
                save_lora(step.unet, config.output_dir)
        processes = self.accelerator.num_processes
        options = {"rows": rows, "step": kept, "num_processes": processes, "repo_id": repo_id}
        write_card(config.output_dir, config, step.class_names, **options)
        logger.info(f"The LoRA of step {kept} is {config.output_dir / LORA_FILE}")
        if repo_id:
            logger.info(f"Uploaded to {upload_model(config.output_dir, repo_id, PUBLISHED)}")


def _check_sources(config: LbGenConfig) -> None:
    """Follow every name of the config to where it leads, before a model is loaded.

    Raises:
        UserError: one leads nowhere.
    """
    find_checkpoint(config.output_dir, config.resume_from_checkpoint)
    if config.class_names is not None:
        load_class_names(config.class_names)
    for model, weights in (
        (config.clip_model, config.clip_weights),
        (config.eval_clip_model, config.eval_clip_weights),
    ):
        if model is not None:
            check_clip(model, weights)
    if config.quality_scorer is not None:
        check_scorer(config.quality_scorer)
    base = config.pretrained_model_name_or_path
    with loading(base, "model", [LBGEN_TINY]):
        base_is_lora = is_lora(resolve(base, "pipeline"), revision=config.revision)
    if base_is_lora:
        raise UserError(f"{base} is a LoRA: give the model that it was made for, or one into which it has been fused")
