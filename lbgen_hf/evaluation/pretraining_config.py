"""The settings of a backbone's pre-training; their defaults are the paper's table 5, for ResNet50."""

# ruff: noqa: RUF009  HfArg is dataclasses.field

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import HfArgumentParser

from lbgen_hf.checks import check_number
from lbgen_hf.config_files import HfArg, make_config_parser, read_yaml
from lbgen_hf.errors import UserError

# What says where a run is, and nothing of what it computes.
_HOUSEKEEPING = {
    *("output_dir", "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "report_to"),
    *("push_to_hub", "hub_model_id", "hub_private", "num_workers", "validation_data", "validation_epochs"),
}


@dataclasses.dataclass(frozen=True)
class PretrainingConfig:
    """What `Pretraining` does. Each field's `help` documents it; every value is checked when the config is made.

    Raises:
        UserError: a value is out of its range, or values contradict each other.
    """

    data: str = HfArg(
        help="The training images: a folder that lbgen generate made, a `datasets` repo or folder, a folder of class"
        " folders, or a folder of WebDataset tars."
    )
    output_dir: Path = HfArg(default="backbone", help="Where the backbone and its checkpoints are written.")
    streaming: bool = HfArg(default=False, help="Read a `datasets` repo as a stream, without downloading it.")
    images_per_epoch: int | None = HfArg(default=None, help="Of a stream that does not say how many images it has.")
    class_names: str | None = HfArg(
        default=None, help="Where a stream does not name its classes: as in `lbgen classes`, a text file say."
    )
    validation_data: str | None = HfArg(
        default=None, help="Real images of the training classes, as --data or by wnid: accuracy on them is reported."
    )
    held_out_fraction: float = HfArg(
        default=0.01, help="Share of the training images, by class, kept out to validate on; not of a stream."
    )
    validation_epochs: int = HfArg(default=10, help="Validate every so many epochs, and at the end.")

    model: str = HfArg(default="resnet50", help="The timm architecture; its weights are random.")
    model_args: str = HfArg(default="{}", help='More arguments of the architecture, as JSON: {"patch_size": 8}.')
    image_size: int = HfArg(default=224, help="Pixels a side.")
    crop_pct: float = HfArg(default=0.875, help="Share of the resized image that evaluation crops.")
    drop_path_rate: float = HfArg(default=0.1, help="Stochastic depth.")
    layer_scale: float | None = HfArg(
        default=1e-6, help="Initial layer scale, for architectures that have one (ViT); ResNets have none."
    )

    num_train_epochs: int = HfArg(default=120, help="Reduced data keep the number of epochs, not of steps.")
    max_train_steps: int | None = HfArg(default=None, help="Stop after so many steps; the schedule stays.")
    train_batch_size: int = HfArg(default=256, help="Images a process and micro-batch; the paper has 2048 in all.")
    gradient_accumulation_steps: int = HfArg(default=1, help="Micro-batches a step.")
    learning_rate: float = HfArg(default=1e-3, help="Peak, of AdamW.")
    warmup_epochs: float = HfArg(default=12, help="Linear warm-up; cosine decay to --min_learning_rate after it.")
    min_learning_rate: float = HfArg(default=1e-6, help="At the end of the schedule.")
    weight_decay: float = HfArg(default=0.05, help="Not of biases and norms. The paper gives none; ConvNeXt's.")
    max_grad_norm: float | None = HfArg(default=None, help="Gradient clipping; the paper has none.")
    auto_augment: str = HfArg(default="rand-m9-mstd0.5-inc1", help="timm's notation; empty for none.")
    color_jitter: float = HfArg(default=0.4, help="Used where there is no --auto_augment.")
    min_crop_area: float = HfArg(default=0.08, help="Least share of the image in a random resized crop.")
    hflip: float = HfArg(default=0.5, help="Probability of a horizontal flip.")
    mixup: float = HfArg(default=0.8, help="Alpha; 0 for none.")
    cutmix: float = HfArg(default=1.0, help="Alpha; 0 for none.")
    random_erasing: float = HfArg(default=0.25, help="Probability.")
    label_smoothing: float = HfArg(default=0.1, help="Of the targets.")
    ema_decay: float = HfArg(default=0.9999, help="Of the average of the weights, which is what is kept; 0: the last.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = HfArg(
        default=None, help="Default: what `accelerate launch` says."
    )
    seed: int = HfArg(default=0, help="Of everything that is random.")

    num_workers: int = HfArg(default=4, help="Processes that read and augment images, for each GPU.")
    checkpointing_steps: int = HfArg(default=1000, help="Write a checkpoint every so many steps.")
    checkpoints_total_limit: int | None = HfArg(default=2, help="Keep only so many, the newest.")
    resume_from_checkpoint: str | None = HfArg(default=None, help="A checkpoint-N folder, or latest.")
    report_to: str | None = HfArg(default=None, help="tensorboard, wandb, trackio. Default: none.")
    push_to_hub: bool = HfArg(default=False, help="Upload the backbone and its card to the Hub.")
    hub_model_id: str | None = HfArg(default=None, help="Default: the name of the output folder.")
    hub_private: bool = HfArg(default=False, help="Make the repo private if it is created.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_dir", Path(self.output_dir))
        for field in dataclasses.fields(self):  # 1 and 1.0 are one setting
            value = getattr(self, field.name)
            if field.type in (float, float | None) and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, field.name, float(value))
        counts = ("image_size", "num_train_epochs", "train_batch_size", "gradient_accumulation_steps")
        for name in (*counts, "checkpointing_steps", "validation_epochs"):
            check_number(name, getattr(self, name), integer=True, at_least=1)
        for name in ("max_train_steps", "checkpoints_total_limit", "images_per_epoch"):
            check_number(name, getattr(self, name), integer=True, at_least=1)
        for name in ("num_workers", "seed"):
            check_number(name, getattr(self, name), integer=True, at_least=0)
        for name in ("learning_rate", "crop_pct", "min_crop_area"):
            check_number(name, getattr(self, name), above=0, at_most=1)
        check_number("min_learning_rate", self.min_learning_rate, at_least=0, at_most=self.learning_rate)
        fractions = ("held_out_fraction", "drop_path_rate", "label_smoothing", "ema_decay", "weight_decay")
        for name in fractions:
            check_number(name, getattr(self, name), at_least=0, below=1)
        for name in ("random_erasing", "hflip"):
            check_number(name, getattr(self, name), at_least=0, at_most=1)
        for name in ("mixup", "cutmix", "color_jitter", "layer_scale"):
            check_number(name, getattr(self, name), at_least=0)
        check_number("max_grad_norm", self.max_grad_norm, above=0)
        check_number("warmup_epochs", self.warmup_epochs, at_least=0, below=self.num_train_epochs)
        if (self.mixup or self.cutmix) and self.train_batch_size % 2:
            raise UserError(f"mixup pairs images: train_batch_size must be even, got {self.train_batch_size}")
        if not isinstance(self.architecture_args, dict):
            raise UserError(f"model_args must be a JSON object, got {self.model_args}")

    @property
    def architecture_args(self) -> dict[str, Any]:
        """`model_args`, read."""
        try:
            return json.loads(self.model_args)
        except ValueError as error:
            raise UserError(f"model_args is not JSON: {error}") from error

    def differences(self) -> dict[str, Any]:
        """What decides the result and differs from the defaults, for the card."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {
            name: value
            for name, value in vars(self).items()
            if name not in _HOUSEKEEPING and value is not None and value != defaults[name]
        }

    def fixed_settings(self) -> dict[str, str]:
        """What must not change when the run is resumed, as text."""
        free = _HOUSEKEEPING | {"max_train_steps"}
        return {name: str(value) for name, value in vars(self).items() if name not in free}


def make_parser(description: str | None = None) -> HfArgumentParser:
    """The command line: `--config`, and an option for each field."""
    return make_config_parser(PretrainingConfig, "train_backbone", description)


def parse_config(arguments: Sequence[str], parser: HfArgumentParser | None = None) -> PretrainingConfig:
    """A config from a command line: the defaults, then the `--config` files in order, then the other options.

    Raises:
        UserError: an option is unknown or has a bad value, or a config cannot be read.
    """
    parser = parser or make_parser()
    only_configs = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only_configs.add_argument("--config", type=Path, nargs="+", action="extend", default=[])
    configs = only_configs.parse_known_args(arguments)[0].config
    earlier = [argument for path in configs for argument in read_yaml(path, parser)]
    config, *_ = parser.parse_args_into_dataclasses([*earlier, *arguments], look_for_args_file=False)
    return config
