"""The settings of a backbone's pre-training; their defaults are the paper's table 5, for ResNet50."""

# ruff: noqa: RUF009  HfArg is dataclasses.field

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import HfArgumentParser

from lbgen_hf.checks import check_number
from lbgen_hf.config_files import HfArg, make_config_parser
from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.training_config import TrainingConfig, json_object, parse_command_line


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingConfig(TrainingConfig):
    """What `Pretraining` does. Each field's `help` documents it; every value is checked when the config is made.

    Raises:
        UserError: a value is out of its range, or values contradict each other.
    """

    housekeeping: ClassVar[frozenset[str]] = TrainingConfig.housekeeping | {
        *("push_to_hub", "hub_model_id", "hub_private", "validation_data")
    }

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

    model: str = HfArg(default="resnet50", help="The timm architecture; its weights are random.")
    model_args: str = HfArg(default="{}", help='More arguments of the architecture, as JSON: {"patch_size": 8}.')
    crop_pct: float = HfArg(default=0.875, help="Share of the resized image that evaluation crops.")
    drop_path_rate: float = HfArg(default=0.1, help="Stochastic depth.")
    layer_scale: float | None = HfArg(
        default=1e-6, help="Initial layer scale, for architectures that have one (ViT); ResNets have none."
    )

    num_train_epochs: int = HfArg(default=120, help="Reduced data keep the number of epochs, not of steps.")
    train_batch_size: int = HfArg(default=256, help="Images a process and micro-batch; the paper has 2048 in all.")
    learning_rate: float = HfArg(default=1e-3, help="Peak, of AdamW.")
    warmup_epochs: float = HfArg(default=12, help="Linear warm-up; cosine decay to --min_learning_rate after it.")
    weight_decay: float = HfArg(default=0.05, help="Not of biases and norms. The paper gives none; ConvNeXt's.")
    auto_augment: str = HfArg(default="rand-m9-mstd0.5-inc1", help="timm's notation; empty for none.")
    color_jitter: float = HfArg(default=0.4, help="Used where there is no --auto_augment.")
    min_crop_area: float = HfArg(default=0.08, help="Least share of the image in a random resized crop.")
    mixup: float = HfArg(default=0.8, help="Alpha; 0 for none.")
    cutmix: float = HfArg(default=1.0, help="Alpha; 0 for none.")
    random_erasing: float = HfArg(default=0.25, help="Probability.")
    label_smoothing: float = HfArg(default=0.1, help="Of the targets.")
    ema_decay: float = HfArg(default=0.9999, help="Of the average of the weights, which is what is kept; 0: the last.")

    push_to_hub: bool = HfArg(default=False, help="Upload the backbone and its card to the Hub.")
    hub_model_id: str | None = HfArg(default=None, help="Default: the name of the output folder.")
    hub_private: bool = HfArg(default=False, help="Make the repo private if it is created.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("images_per_epoch", self.images_per_epoch, integer=True, at_least=1)
        for name in ("crop_pct", "min_crop_area"):
            check_number(name, getattr(self, name), above=0, at_most=1)
        for name in ("held_out_fraction", "drop_path_rate", "label_smoothing"):
            check_number(name, getattr(self, name), at_least=0, below=1)
        check_number("random_erasing", self.random_erasing, at_least=0, at_most=1)
        for name in ("mixup", "cutmix", "color_jitter", "layer_scale"):
            check_number(name, getattr(self, name), at_least=0)
        if (self.mixup or self.cutmix) and self.train_batch_size % 2:
            raise UserError(f"mixup pairs images: train_batch_size must be even, got {self.train_batch_size}")
        _check_auto_augment(self.auto_augment)
        json_object("model_args", self.model_args)

    @property
    def architecture_args(self) -> dict[str, Any]:
        """`model_args`, read."""
        return json_object("model_args", self.model_args)


def _check_auto_augment(policy: str) -> None:
    from timm.data import create_transform

    try:
        create_transform(is_training=True, auto_augment=policy or None)
    except (AssertionError, ValueError) as error:
        raise UserError(
            f"auto_augment {policy!r} is not timm's notation: give rand-m9-mstd0.5-inc1, say, or nothing for none"
        ) from error


def make_parser(description: str | None = None) -> HfArgumentParser:
    """The command line: `--config`, and an option for each field."""
    return make_config_parser(PretrainingConfig, "train_backbone", description)


def parse_config(arguments: Sequence[str], parser: HfArgumentParser | None = None) -> PretrainingConfig:
    """A config from a command line, as `parse_command_line`."""
    return parse_command_line(parser or make_parser(), arguments)
