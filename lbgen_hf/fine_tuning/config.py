"""The settings of a fine-tuning run, as a dataclass: the script's options, YAML files and the card are made from it."""

# ruff: noqa: RUF009  HfArg is dataclasses.field

import argparse
import dataclasses
import functools
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from transformers import HfArgumentParser

from lbgen_hf.checks import check_number
from lbgen_hf.config_files import HfArg, make_config_parser, read_yaml
from lbgen_hf.errors import UserError
from lbgen_hf.sampling import training_scheduler
from lbgen_hf.shipped import LBGEN_TINY, companions_of

# Numbers whose annotation carries the check of their range.
_integer = functools.partial(check_number, integer=True)
Seed = Annotated[int, functools.partial(_integer, at_least=0, below=2**63)]
CountOrZero = Annotated[int, functools.partial(_integer, at_least=0)]
Count = Annotated[int, functools.partial(_integer, at_least=1)]
CountOfPairs = Annotated[int, functools.partial(_integer, at_least=2)]
SamplingSteps = Annotated[int, functools.partial(_integer, at_least=1, at_most=1000)]
Positive = Annotated[float, functools.partial(check_number, above=0)]
NotNegative = Annotated[float, functools.partial(check_number, at_least=0)]
Fraction = Annotated[float, functools.partial(check_number, at_least=0, at_most=1)]
Rate = Annotated[float, functools.partial(check_number, above=0, at_most=1)]
Decay = Annotated[float, functools.partial(check_number, at_least=0, below=1)]

# What says where a run is kept and how it is watched, and nothing of what it computes.
_HOUSEKEEPING = {
    *("output_dir", "resume_from_checkpoint", "report_to", "checkpointing_steps", "checkpoints_total_limit"),
    *("push_to_hub", "hub_model_id", "hub_private"),
}
# What else may change when a run is resumed: when it ends, and how the images of a step are split.
_FREE_ON_RESUME = _HOUSEKEEPING | {
    *("max_train_steps", "num_train_epochs", "keep"),
    *("train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"),
}

# What only one alignment has; every other option is of both.
_ALIGNMENT_OF = {
    **dict.fromkeys(("entire_weight", "individual_weight", "real_classes", "discriminator_activation"), "paper"),
    **dict.fromkeys(("context_weight", "class_weight", "class_scale", "discriminator_updates"), "context_swap"),
    **dict.fromkeys(("context_shift", "context_direction", "context_bank_size"), "context_swap"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LbGenConfig:
    """The settings of `LbGenTrainer`. The defaults are the paper's (its table 8); each field's `help` documents it.

    Every value is checked when the config is made, so that a config that exists is valid.

    Raises:
        UserError: a number is not finite or out of its range, a choice is unknown, or settings contradict each other.

    Example:
        >>> config = LbGenConfig.from_yaml("training/configs/tiny.yaml", output_dir="lora", seed=1)
        >>> LbGenTrainer(config).train()
    """

    # The run
    pretrained_model_name_or_path: str = HfArg(
        default=LBGEN_TINY, help="The base model: lbgen-tiny, a folder or a Hub id of a Stable Diffusion pipeline."
    )
    revision: str | None = HfArg(default=None, help="Branch, tag or commit of the base model's repo.")
    variant: str | None = HfArg(default=None, help="Variant of the base model's weight files, such as fp16.")
    class_names: str | None = HfArg(
        default=None,
        help="imagenet-1k, imagenet-100, biaslab, a text file with a name a line, or a dataset's folder."
        " Default: the classes of the base model.",
    )
    output_dir: Path = HfArg(default=Path("lbgen-lora"), help="Where the LoRA and all else is written.")
    seed: Seed = HfArg(default=0, help="Seed of everything that is random.")
    num_train_epochs: Count = HfArg(default=3, help="Passes over the class names.")
    max_train_steps: Count | None = HfArg(default=None, help="Number of steps; replaces --num_train_epochs.")
    train_batch_size: Count = HfArg(default=4, help="Images of a micro-batch, on each process.")
    gradient_accumulation_steps: Count = HfArg(default=1, help="Micro-batches of a step.")
    gradient_checkpointing: bool = HfArg(
        default=False, help="Recompute activations of UNet, VAE and CLIP in the backward pass: less memory, more time."
    )
    compile: bool = HfArg(
        default=False, help="torch.compile the UNet for the sampling steps without gradients: 45 of the paper's 50."
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = HfArg(
        default=None, help="Precision of the frozen models. Default: what `accelerate launch` says."
    )

    # Sampling
    scheduler: str = HfArg(default="ddim", help="The scheduler that training images are sampled with: ddim or ddpm.")
    num_inference_steps: SamplingSteps = HfArg(default=50, help="Sampling steps of an image.")
    num_gradient_steps: Count = HfArg(
        default=5, aliases=["--num_trained_steps"], help="How many of the sampling steps carry gradients."
    )
    guidance_scale: NotNegative = HfArg(default=2.0, help="Classifier-free guidance.")
    guidance_start: Fraction = HfArg(
        default=0.0, help="Fraction of the sampling steps after which guidance begins while training."
    )
    guidance_stop: Fraction = HfArg(
        default=1.0,
        help="Fraction of the sampling steps at which guidance ends while training; equal to --guidance_start: no"
        " guidance. Validation images are always sampled with guidance.",
    )
    detach_unet_input: bool = HfArg(
        default=False,
        help="Stop the gradient at the UNet's input in each gradient step (DRTune), instead of back-propagating through"
        " the chain of gradient steps (CoMat).",
    )
    early_exit: bool = HfArg(default=False, help="Predict the clean image in one jump at the last gradient step.")

    # Losses
    alignment: Literal["paper", "context_swap"] = HfArg(
        default="paper",
        help="The paper's L_en and L_in; or context-swap alignment, which keeps most of the base model's diversity.",
    )
    entire_weight: NotNegative = HfArg(default=1.0, help="Weight of L_en, the adversarial alignment (eq. 5).")
    individual_weight: NotNegative = HfArg(default=1.0, help="Weight of L_in, the alignment with the own text (eq. 6).")
    quality_weight: NotNegative = HfArg(default=0.1, help="Weight of L_q, the image quality (eq. 7): lambda in eq. 8.")
    saturating: bool = HfArg(default=False, help="L_en as the paper writes it, log(1 - D), instead of -log D.")
    real_classes: Literal["others", "first"] = HfArg(
        default="others",
        help="Names that D sees as real: any class but the image's own, or the first of the list (the authors' code).",
    )
    context_weight: NotNegative = HfArg(default=6.0, help="Weight of L_context, of context_swap.")
    class_weight: NotNegative = HfArg(default=1.0, help="Weight of L_class, of context_swap.")
    class_scale: Positive = HfArg(default=10.0, help="Scale of the cosines in L_class; CLIP's own is 100.")
    context_shift: NotNegative = HfArg(
        default=0.6, help="How far context_swap moves an image's feature along the difference of two classes."
    )
    context_direction: Literal["text", "image"] = HfArg(
        default="text",
        help="What stands for a class in that difference: its text, or its image features' mean as its text tells it.",
    )
    context_bank_size: CountOfPairs = HfArg(
        default=1024, help="Images of the base model, of all classes, whose contexts context_swap asks for."
    )
    clip_model: str | None = HfArg(
        default=None, help="open_clip architecture, hf-hub:owner/name or a folder. Default: ViT-L-14; lbgen-tiny's own."
    )
    clip_weights: str = HfArg(default="openai", help="Pretrained tag of the architecture, or a file.")
    quality_scorer: str | None = HfArg(default=None, help="Default: qalign; for lbgen-tiny its own scorer.")
    discriminator_hidden_size: Count | None = HfArg(
        default=None, help="Default: the width of CLIP's features; 128 for context_swap."
    )
    discriminator_activation: Literal["relu", "leaky_relu"] = HfArg(default="relu", help="Activation of D, of paper.")
    discriminator_warmup_epochs: NotNegative = HfArg(default=0.0, help="Epochs in which D alone is trained, first.")

    discriminator_updates: Count = HfArg(default=5, help="Updates of D in each step, of context_swap.")

    # Optimisation
    lora_rank: Count = HfArg(default=128, aliases=["--rank"], help="Rank of the LoRA.")
    lora_alpha: Positive | None = HfArg(default=None, help="Default: the rank, which is a scale of 1.")
    learning_rate: Rate = HfArg(default=2e-5, help="Learning rate of the LoRA.")
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"] = HfArg(
        default="constant", help="Schedule of the LoRA's learning rate."
    )
    lr_warmup_steps: CountOrZero = HfArg(default=0, help="Warm-up steps of the schedule.")
    weight_decay: Fraction = HfArg(default=0.01, aliases=["--adam_weight_decay"], help="Of both AdamW optimizers.")
    max_grad_norm: Positive = HfArg(default=0.1, help="Gradient clipping of the LoRA.")
    discriminator_learning_rate: Rate = HfArg(default=1e-5, help="Learning rate of D, constant.")
    discriminator_max_grad_norm: Positive = HfArg(default=1.0, help="Gradient clipping of D.")
    ema_decay: Decay = HfArg(
        default=0.0, help="Decay of the moving average of the LoRA that is kept and validated; 0: no average."
    )

    # Validation, checkpoints, publishing
    validation_steps: CountOrZero = HfArg(default=100, help="Validate every so many steps; 0: never.")
    num_validation_classes: Count = HfArg(default=16, help="Classes of the validation images, spread over the list.")
    validation_images_per_class: CountOfPairs = HfArg(
        default=4, aliases=["--num_validation_images"], help="Diversity is a distance between two images of a class."
    )
    eval_clip_model: str | None = HfArg(default=None, help="A CLIP that is not the reward, to measure class accuracy.")
    eval_clip_weights: str | None = HfArg(default=None, help="Its pretrained tag or file.")
    keep: Literal["last", "best"] = HfArg(default="last", help="The LoRA to keep; best: by the validation metrics.")
    checkpointing_steps: Count = HfArg(default=100, help="Write a checkpoint every so many steps.")
    checkpoints_total_limit: Count | None = HfArg(default=None, help="Keep only so many, the newest.")
    resume_from_checkpoint: str | None = HfArg(default=None, help="A checkpoint-N folder, or latest.")
    report_to: str | None = HfArg(
        default=None, help="tensorboard (default where installed), wandb, trackio, another of accelerate's, all, none."
    )
    push_to_hub: bool = HfArg(default=False, help="Upload the LoRA, its card and pipeline.py to the Hub.")
    hub_model_id: str | None = HfArg(default=None, help="Default: the name of the output folder.")
    hub_private: bool = HfArg(default=False, help="Make the repo private if it is created.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_dir", Path(self.output_dir))
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            _check(name, getattr(self, name), hint)
        training_scheduler(self.scheduler, {})
        check_number("num_gradient_steps", self.num_gradient_steps, at_most=self.num_inference_steps)
        check_number("guidance_stop", self.guidance_stop, at_least=self.guidance_start)
        paper = self.alignment == "paper"
        aligned = (self.entire_weight, self.individual_weight) if paper else (self.context_weight, self.class_weight)
        if not any((*aligned, self.quality_weight)):
            raise UserError("all losses have weight zero, so nothing would be learned; give one of them a weight")
        if self.keep == "best" and not self.validation_steps:
            raise UserError("keep best chooses by the validation metrics; give validation_steps above 0")
        if self.eval_clip_weights and not self.eval_clip_model:
            raise UserError("eval_clip_weights belong to an eval_clip_model; give that too")

    @classmethod
    def from_yaml(cls, *paths: str | Path, **overrides: Any) -> "LbGenConfig":
        """A config from YAML files of `field: value` lines.

        Args:
            *paths: a later file overrides an earlier one.
            **overrides: fields that override the files.

        Raises:
            UserError: a file cannot be read, or has an unknown field or a bad value.
        """
        return dataclasses.replace(parse_config([f"--config={path}" for path in paths]), **overrides)

    def settings(self) -> dict[str, Any]:
        """Every field but those that only another alignment has."""
        strangers = _strangers(self.alignment)
        return {name: value for name, value in vars(self).items() if name not in strangers}

    def to_dict(self) -> dict[str, Any]:
        """What decides the result of the run, field by field, as YAML stores it; fields that are None are omitted."""
        values = {name: value for name, value in self.settings().items() if name not in _HOUSEKEEPING}
        return {name: value for name, value in values.items() if value is not None}

    def differences(self) -> dict[str, Any]:
        """What of `to_dict` differs from the defaults, the paper's settings."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: value for name, value in self.to_dict().items() if value != defaults[name]}

    def fixed_settings(self) -> dict[str, str]:
        """What must not change when the run is resumed, as text."""
        return {name: str(value) for name, value in self.settings().items() if name not in _FREE_ON_RESUME}


def _strangers(alignment: str) -> set[str]:
    """The fields that only another alignment has."""
    return {name for name, owner in _ALIGNMENT_OF.items() if owner != alignment}


def _check(name: str, value: object, hint: Any) -> None:
    """Check a field's value against its annotation: the range of a number, the choices of a `Literal`."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None:
        if type(None) not in kinds:
            raise UserError(f"{name} needs a value, got None")
        return
    kind = kinds[0]
    if typing.get_origin(kind) is Annotated:
        check_in_range = kind.__metadata__[0]
        check_in_range(name, value)
    elif typing.get_origin(kind) is Literal and value not in typing.get_args(kind):
        raise UserError(f"unknown {name} {value!r}; choose from {', '.join(typing.get_args(kind))}")


def make_parser(prog: str = "train_lbgen", description: str | None = None) -> HfArgumentParser:
    """The command line of a run: `--config` and an option for each field of `LbGenConfig`."""
    return make_config_parser(LbGenConfig, prog, description)


def parse_config(
    arguments: Sequence[str], parser: HfArgumentParser | None = None, config_folder: Path | None = None
) -> LbGenConfig:
    """A config from a command line: the defaults, then the `--config` files in order, then the other options.

    Args:
        arguments: as in `sys.argv[1:]`.
        parser: default `make_parser()`.
        config_folder: where a base model's own config is, for a command line without `--config`: see `companions_of`.

    Raises:
        UserError: an option that is unknown or only another alignment's, a bad value, or a config that cannot be read.
    """
    parser = parser or make_parser()
    given = parser.parse_args(arguments)
    configs, own = given.config, companions_of(given.pretrained_model_name_or_path).training_config
    if not configs and config_folder and own:
        configs = [config_folder / own]
    layers = [*(read_yaml(path, parser) for path in configs), arguments]
    everything = [argument for layer in layers for argument in layer]
    config = parser.parse_args_into_dataclasses(everything, look_for_args_file=False)[0]
    _check_alignment(config.alignment, [_given(layer, parser) for layer in layers])
    return config


def _given(arguments: Sequence[str], parser: HfArgumentParser) -> set[str]:
    """The fields that a command line gives, be it their default."""
    nothing = argparse.Namespace(**dict.fromkeys(field.name for field in dataclasses.fields(LbGenConfig)))
    return {name for name, value in vars(parser.parse_args(arguments, nothing)).items() if value is not None}


def _check_alignment(alignment: str, layers: list[set[str]]) -> None:
    """Refuse options that only another alignment has, given where the alignment was chosen or later.

    What comes before that is overruled with the alignment that it was for, as tiny.yaml's weights by context_swap.yaml.
    """
    given: set[str] = set()
    for layer in layers:
        given = layer if "alignment" in layer else given | layer
    if strangers := sorted(given & _strangers(alignment)):
        raise UserError(
            f"the alignment {alignment} has no {', '.join(strangers)}: leave that out, or choose another alignment"
        )
