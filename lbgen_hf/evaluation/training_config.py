"""The settings that pre-training, detection and segmentation share, and their command lines."""

# ruff: noqa: RUF009  HfArg is dataclasses.field

import argparse
import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from transformers import HfArgumentParser

from lbgen_hf.checks import check_number
from lbgen_hf.config_files import HfArg, read_yaml
from lbgen_hf.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What every run has. Each field's `help` documents it; every value is checked when the config is made.

    Raises:
        UserError: a value is out of its range.
    """

    # What says where a run is, and nothing of what it computes.
    housekeeping: ClassVar[frozenset[str]] = frozenset(
        {
            *("output_dir", "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "report_to"),
            *("num_workers", "validation_epochs"),
        }
    )

    data: str = HfArg(help="The training images.")
    output_dir: Path = HfArg(default="output", help="Where the result and the checkpoints are written.")
    validation_epochs: int = HfArg(default=10, help="Validate every so many epochs, and at the end.")

    image_size: int = HfArg(default=224, help="Pixels a side.")
    hflip: float = HfArg(default=0.5, help="Probability of a horizontal flip.")
    num_train_epochs: int = HfArg(default=12, help="Reduced data keep the number of epochs, not of steps.")
    max_train_steps: int | None = HfArg(default=None, help="Stop after so many steps; the schedule stays.")
    train_batch_size: int = HfArg(default=16, help="Images a process and micro-batch.")
    gradient_accumulation_steps: int = HfArg(default=1, help="Micro-batches a step.")
    learning_rate: float = HfArg(default=1e-4, help="Peak, of AdamW.")
    warmup_epochs: float = HfArg(default=1, help="Linear warm-up; cosine decay to --min_learning_rate after it.")
    min_learning_rate: float = HfArg(default=1e-6, help="At the end of the schedule.")
    weight_decay: float = HfArg(default=0.05, help="Not of biases and norms.")
    max_grad_norm: float | None = HfArg(default=None, help="Gradient clipping. Default: none.")
    ema_decay: float = HfArg(default=0.0, help="Of the average of the weights, which is what is kept; 0: the last.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = HfArg(
        default=None, help="Default: what `accelerate launch` says."
    )
    seed: int = HfArg(default=0, help="Of everything that is random.")

    num_workers: int = HfArg(default=4, help="Processes that read and augment images, for each GPU.")
    checkpointing_steps: int = HfArg(default=1000, help="Write a checkpoint every so many steps.")
    checkpoints_total_limit: int | None = HfArg(default=2, help="Keep only so many, the newest.")
    resume_from_checkpoint: str | None = HfArg(default=None, help="A checkpoint-N folder, or latest.")
    report_to: str | None = HfArg(
        default=None, help="tensorboard, wandb, trackio, another of accelerate's, all, none. Default: none."
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_dir", Path(self.output_dir))
        for field in dataclasses.fields(self):  # 1 and 1.0 are one setting
            value = getattr(self, field.name)
            if field.type in (float, float | None) and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, field.name, float(value))
        counts = ("image_size", "num_train_epochs", "train_batch_size", "gradient_accumulation_steps")
        optional_counts = ("max_train_steps", "checkpoints_total_limit")
        for name in (*counts, "checkpointing_steps", "validation_epochs", *optional_counts):
            check_number(name, getattr(self, name), integer=True, at_least=1)
        for name in ("num_workers", "seed"):
            check_number(name, getattr(self, name), integer=True, at_least=0)
        check_number("learning_rate", self.learning_rate, above=0, at_most=1)
        check_number("min_learning_rate", self.min_learning_rate, at_least=0, at_most=self.learning_rate)
        for name in ("ema_decay", "weight_decay"):
            check_number(name, getattr(self, name), at_least=0, below=1)
        check_number("hflip", self.hflip, at_least=0, at_most=1)
        check_number("max_grad_norm", self.max_grad_norm, above=0)
        check_number("warmup_epochs", self.warmup_epochs, at_least=0, below=self.num_train_epochs)

    def differences(self) -> dict[str, Any]:
        """What decides the result and differs from the defaults, for the card."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {
            name: value
            for name, value in vars(self).items()
            if name not in self.housekeeping and value is not None and value != defaults[name]
        }

    def fixed_settings(self) -> dict[str, str]:
        """What must not change when the run is resumed, as text."""
        free = self.housekeeping | {"max_train_steps"}
        return {name: str(value) for name, value in vars(self).items() if name not in free}


def json_object(name: str, text: str) -> dict[str, Any]:
    """A setting that holds a JSON object.

    Raises:
        UserError: it is something else.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"{name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{name} must be a JSON object, got {text}")
    return found


def parse_command_line(parser: HfArgumentParser, arguments: Sequence[str]) -> Any:
    """A config from a command line: the defaults, then the `--config` files in order, then the other options.

    Raises:
        UserError: an option is unknown or has a bad value, or a config cannot be read.
    """
    only_configs = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only_configs.add_argument("--config", type=Path, nargs="+", action="extend", default=[])
    configs = only_configs.parse_known_args(arguments)[0].config
    given = [*(argument for path in configs for argument in read_yaml(path, parser)), *arguments]
    parser.parse_args(given)  # what is unknown is a UserError here, and with transformers' own check another
    config, *_ = parser.parse_args_into_dataclasses(given, look_for_args_file=False)
    return config


def log_to_stderr() -> None:
    """Show what rank 0 of a training script says of its progress."""
    logging.basicConfig(format="%(message)s")
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger("lbgen_hf").setLevel(logging.INFO)
