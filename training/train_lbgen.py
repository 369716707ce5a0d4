"""Fine-tune a text-to-image model so that what it draws for a class name carries little bias: lbGen (CVPR 2025).

    accelerate launch training/train_lbgen.py
    accelerate launch --num_processes 8 training/train_lbgen.py --config training/configs/paper.yaml --output_dir lora

Typed bare it fine-tunes the shipped lbgen-tiny, with training/configs/tiny.yaml. The options' own defaults are the
paper's table 8; a `--config` changes them, and the command line changes both. The result is a LoRA in `--output_dir`.
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from torchvision.utils import make_grid, save_image
from tqdm.auto import tqdm

from lbgen_hf.errors import UserError, report_errors
from lbgen_hf.files import write_atomically
from lbgen_hf.fine_tuning.checkpoints import Journal, find_checkpoint, load_state, save_checkpoint
from lbgen_hf.fine_tuning.lora import push, save_lora, write_card
from lbgen_hf.fine_tuning.trainer import ACTIVATIONS, DTYPES, FineTuning
from lbgen_hf.fine_tuning.validation import choose_step
from lbgen_hf.pipeline_lbgen import LBGEN_TINY, LORA_FILE
from lbgen_hf.sampling import choose_trained_steps, training_scheduler

CONFIGS = Path(__file__).parent / "configs"

# What the authors' published code does, where it departs from their paper. For comparison.
UPSTREAM = {
    "individual_weight": 0.0,  # computed there, and dropped before the back-propagation
    "quality_weight": 0.0,  # likewise
    "real_classes": "first",
    "discriminator_hidden_size": 3,
    "discriminator_activation": "leaky_relu",
    "discriminator_warmup_epochs": 1,
    "scheduler": "ddpm",
    "unet_input": "through",
}
# What says where and how a run goes on, and nothing of what it computes: not for the card.
HOUSEKEEPING = {
    *("config", "output_dir", "resume_from_checkpoint", "report_to", "checkpointing_steps", "checkpoints_total_limit"),
    *("push_to_hub", "hub_model_id", "hub_private"),
}
# What may change between a run and its resumption without changing what it computes.
FREE_TO_CHANGE = HOUSEKEEPING | {
    *("preset", "max_train_steps", "num_train_epochs", "keep"),
    *("train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(message)


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="train_lbgen",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def switch(group, name: str, help: str) -> None:
        group.add_argument(name, action=argparse.BooleanOptionalAction, default=False, help=help)

    run = parser.add_argument_group("run")
    run.add_argument("--pretrained_model_name_or_path", default=LBGEN_TINY, help="lbgen-tiny, a folder or a Hub id.")
    run.add_argument("--class_names", help="imagenet-1k, imagenet-100, a text file... Default: the model's own list.")
    run.add_argument("--output_dir", type=Path, default=Path("lbgen-lora"), help="Where the LoRA goes.")
    run.add_argument(
        "--config", type=Path, nargs="+", help="YAML files of options; a later one overrides an earlier one."
    )
    run.add_argument("--preset", choices=["upstream"], help="upstream: as the authors' published code, for comparison.")
    run.add_argument("--seed", type=int, default=0, help="Of everything random in the run.")
    run.add_argument("--num_train_epochs", type=int, default=3, help="Passes over the class names.")
    run.add_argument("--max_train_steps", type=int, help="Replaces --num_train_epochs.")
    run.add_argument("--train_batch_size", type=int, default=4, help="Images a process and micro-batch.")
    run.add_argument("--gradient_accumulation_steps", type=int, default=1, help="Micro-batches a step.")
    switch(
        run, "--gradient_checkpointing", "Recompute UNet, VAE and CLIP activations in the backward pass: less memory."
    )
    switch(run, "--compile", "Compile the UNet for the sampling steps without gradients, most of them in the paper.")
    run.add_argument("--mixed_precision", choices=list(DTYPES), default="no", help="Of all but the LoRA and D.")

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--scheduler", default="ddim", help="ddim or ddpm.")
    sampling.add_argument("--num_inference_steps", type=int, default=50)
    sampling.add_argument("--num_trained_steps", type=int, default=5, help="How many of them carry gradients.")
    sampling.add_argument("--guidance_scale", type=float, default=2.0, help="As the pictures will be drawn.")
    sampling.add_argument(
        "--guidance_interval",
        type=float,
        nargs=2,
        default=[0.0, 1.0],
        help="Share of the schedule with guidance while training; held-out pictures always have it.",
    )
    sampling.add_argument(
        "--unet_input", choices=["stop", "through"], default="through", help="The gradient at a trained step's input."
    )
    switch(sampling, "--early_exit", "Jump to the clean image at the last trained step.")

    losses = parser.add_argument_group("losses")
    losses.add_argument("--entire_weight", type=float, default=1.0, help="Of L_en, the adversarial alignment.")
    losses.add_argument(
        "--individual_weight", type=float, default=1.0, help="Of L_in, the alignment with its own text."
    )
    losses.add_argument("--quality_weight", type=float, default=0.1, help="Of L_q: lambda.")
    switch(losses, "--saturating", "L_en as the paper writes it, log(1 - D), for -log D.")
    losses.add_argument("--real_classes", choices=["others", "first"], default="others", help="Names D sees as real.")
    losses.add_argument("--clip_model", help="open_clip's name, hf-hub:..., or a folder. Default: ViT-L-14.")
    losses.add_argument("--clip_weights", default="openai", help="A tag or a file.")
    losses.add_argument("--quality_scorer", help="Default: qalign; lbgen-tiny's own for lbgen-tiny.")
    losses.add_argument("--discriminator_hidden_size", type=int, help="Default: the width of CLIP's features.")
    losses.add_argument("--discriminator_activation", choices=list(ACTIVATIONS), default="relu")
    losses.add_argument(
        "--discriminator_warmup_epochs", type=float, default=0.0, help="D alone, before the LoRA learns."
    )

    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--lora_rank", type=int, default=128)
    optimisation.add_argument("--lora_alpha", type=float, help="Default: the rank, a scale of 1.")
    optimisation.add_argument("--learning_rate", type=float, default=2e-5, help="Constant.")
    optimisation.add_argument("--weight_decay", type=float, default=0.01, help="Of both AdamW.")
    optimisation.add_argument("--max_grad_norm", type=float, default=0.1)
    optimisation.add_argument("--discriminator_learning_rate", type=float, default=1e-5, help="Constant.")
    optimisation.add_argument("--discriminator_max_grad_norm", type=float, default=1.0)
    optimisation.add_argument(
        "--ema_decay", type=float, default=0.0, help="Keep a moving average of the LoRA over steps."
    )

    watching = parser.add_argument_group("checkpoints and held-out figures")
    watching.add_argument("--checkpointing_steps", type=int, default=100)
    watching.add_argument("--checkpoints_total_limit", type=int, help="Remove older ones.")
    watching.add_argument("--resume_from_checkpoint", help="A checkpoint-N folder, or latest.")
    watching.add_argument("--validation_steps", type=int, default=100, help="Every so many steps; 0 for never.")
    watching.add_argument("--num_validation_classes", type=int, default=16)
    watching.add_argument("--validation_images_per_class", type=int, default=4)
    watching.add_argument("--eval_clip_model", help="A CLIP that is not the reward, to judge held-out pictures.")
    watching.add_argument("--eval_clip_weights")
    watching.add_argument("--keep", choices=["last", "best"], default="last", help="best: by the held-out figures.")
    watching.add_argument("--report_to", help="tensorboard (default where installed), wandb, trackio, none.")
    switch(watching, "--push_to_hub", "Upload the LoRA with its card and pipeline.py.")
    watching.add_argument("--hub_model_id", help="Default: the output folder's name.")
    switch(watching, "--hub_private", "")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options: the parser's defaults, then the configs, then the preset, then the command line.

    Raises:
        UserError: an option that is unknown or has a bad value, or a config that cannot be read.
    """
    parser = make_parser()
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(argv)
    configs = args.config
    if configs is None:
        configs = [CONFIGS / "tiny.yaml"] if args.pretrained_model_name_or_path == LBGEN_TINY else []
    earlier = [argument for path in configs for argument in _as_arguments(_read_config(path, vars(args)))]
    if args.preset == "upstream":
        earlier += _as_arguments(UPSTREAM)
    return parser.parse_args([*earlier, *argv])


def _read_config(path: Path, known: Collection[str]) -> dict:
    try:
        options = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"cannot read config {path}: {str(error).splitlines()[0]}") from error
    for name in options:
        if name not in known:
            raise UserError(f"config {path} has the unknown option {name!r}")
    return options


def _as_arguments(options: dict) -> list[str]:
    """{"lora_rank": 16, "early_exit": True} to ["--lora_rank", "16", "--early_exit"]."""
    arguments = []
    for name, value in options.items():
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no-{name}")
        else:
            arguments += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return arguments


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot work, before anything is loaded.

    Raises:
        UserError: in one line.
    """
    training_scheduler(args.scheduler, {})
    choose_trained_steps(args.num_inference_steps, args.num_trained_steps, torch.Generator())
    counts = ("train_batch_size", "gradient_accumulation_steps", "lora_rank", "num_validation_classes")
    for name in (*counts, "num_train_epochs", "checkpointing_steps"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.validation_steps and args.validation_images_per_class < 2:
        raise UserError(
            "--validation_images_per_class must be at least 2: diversity is a distance between two pictures"
        )
    if args.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise UserError("fp16 does not train on a CPU; give --mixed_precision no or bf16")
    if not (args.entire_weight or args.individual_weight or args.quality_weight):
        raise UserError("all three losses have weight zero, so nothing would be learned")
    if args.keep == "best" and not args.validation_steps:
        raise UserError("--keep best chooses by the held-out figures; give --validation_steps above 0")


def tracker_name(report_to: str | None) -> str | None:
    if report_to == "none" or (report_to is None and importlib.util.find_spec("tensorboard") is None):
        return None
    name = report_to or "tensorboard"
    if importlib.util.find_spec(name) is None:
        raise UserError(f"--report_to {name}: {name} is not installed, pip install {name}")
    return name


def check_same_run(args: argparse.Namespace, images_per_step: int, resumed: bool, is_main: bool) -> None:
    """A resumed run must compute what the first one would have.

    Raises:
        UserError: an option that changes the result differs.
    """
    path = args.output_dir / "training_args.json"
    now = {k: str(v) for k, v in sorted(vars(args).items()) if k not in FREE_TO_CHANGE}
    now["images_per_step"] = str(images_per_step)
    if resumed and path.exists():
        before = json.loads(path.read_text())
        for name in now:
            if before.get(name, now[name]) != now[name]:
                raise UserError(f"this run began with {name} {before[name]}, it cannot go on with {now[name]}")
    elif is_main:
        write_atomically(path, json.dumps(now, indent=2) + "\n")


def save_best(run: FineTuning, folder: Path) -> None:
    temporary = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    with run.average.in_place():
        save_lora(run.unet, temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def validate(run: FineTuning, step: int, journal: Journal | None) -> None:
    """Measure, log, and keep the LoRA if it is the best so far. `journal` is the main process's."""
    figures, images = run.held_out()
    if journal is None:
        return
    journal.add(step, figures)
    pictures = run.args.output_dir / "validation"
    pictures.mkdir(exist_ok=True)
    save_image(images, pictures / f"step-{step:06d}.png", nrow=run.args.validation_images_per_class)
    if choose_step(journal.rows) == step:
        save_best(run, run.args.output_dir / "best")
    run.accelerator.log({f"validation/{name}": value for name, value in figures.items()}, step=step)
    grid = make_grid(images, nrow=run.args.validation_images_per_class).permute(1, 2, 0)[None]
    for tracker in run.accelerator.trackers:
        if hasattr(tracker, "log_images"):
            tracker.log_images({"validation": grid.numpy()}, step=step)
    tqdm.write(f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))


def finish(run: FineTuning, rows: list[dict]) -> None:
    """Write the LoRA with its card and pipeline.py, and upload them if asked to."""
    args = run.args
    step = choose_step(rows) if args.keep == "best" else run.num_steps
    if args.keep == "best":
        shutil.copyfile(args.output_dir / "best" / LORA_FILE, args.output_dir / LORA_FILE)
    else:
        with run.average.in_place():
            save_lora(run.unet, args.output_dir)
    write_card(
        args.output_dir,
        base_model=args.pretrained_model_name_or_path,
        class_names=run.class_names,
        options={k: v for k, v in vars(args).items() if k not in HOUSEKEEPING and v != make_parser().get_default(k)},
        rows=rows,
        step=step,
    )
    print(f"The LoRA of step {step} is {args.output_dir / LORA_FILE}")
    if args.push_to_hub:
        url = push(args.output_dir, args.hub_model_id or args.output_dir.name, private=args.hub_private)
        print(f"Uploaded to {url}")


def main(args: argparse.Namespace) -> None:
    """Run the fine-tuning.

    Raises:
        UserError: bad input, or a loss that is not finite.
    """
    check(args)
    tracker = tracker_name(args.report_to)
    accelerator = Accelerator(mixed_precision=args.mixed_precision, log_with=tracker, project_dir=args.output_dir)
    if accelerator.is_main_process and args.pretrained_model_name_or_path == LBGEN_TINY:
        print(
            "Fine-tuning lbgen-tiny. For Stable Diffusion 1.5: accelerate launch training/train_lbgen.py"
            " --config training/configs/paper.yaml --output_dir lbgen-lora"
        )
    checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    run = FineTuning(args, accelerator)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    check_same_run(args, run.images_per_step, checkpoint is not None, accelerator.is_main_process)
    start = 0
    if checkpoint is not None:
        start, state = load_state(checkpoint)
        run.load_state(state)

    journal = validation_journal = None
    if accelerator.is_main_process:
        last_row = start if checkpoint else -1
        journal = Journal(args.output_dir / "training.jsonl", last_row)
        validation_journal = Journal(args.output_dir / "validation.jsonl", last_row)
        print(
            f"{len(run.class_names)} classes; {run.images_per_step} images a step on {accelerator.num_processes}"
            f" process(es); {run.num_steps} steps,"
            f" {run.num_steps * run.images_per_step / len(run.class_names):.3g} epochs;"
            f" {sum(p.numel() for p in run.parameters) / 1e6:.3g} M LoRA parameters"
        )
        if not args.eval_clip_model:
            print("Held-out class accuracy is under the reward's own CLIP; --eval_clip_model gives an independent one.")
    if tracker:
        accelerator.init_trackers("lbgen", {k: str(v) for k, v in vars(args).items()})

    if args.validation_steps and start == 0:
        validate(run, 0, validation_journal)
    for step in tqdm(range(start, run.num_steps), initial=start, total=run.num_steps, disable=journal is None):
        began = time.monotonic()
        losses = run.train_step(step)
        done = step + 1
        accelerator.log(losses | {"seconds": time.monotonic() - began}, step=done)
        if journal is not None:
            journal.add(done, losses)
        if args.validation_steps and (done % args.validation_steps == 0 or done == run.num_steps):
            validate(run, done, validation_journal)
        if done % args.checkpointing_steps == 0 or done == run.num_steps:
            if accelerator.is_main_process:
                state = run.state()
                with run.average.in_place():
                    save_checkpoint(args.output_dir, done, run.unet, state, args.checkpoints_total_limit)
            accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        finish(run, validation_journal.rows)
    accelerator.end_training()


if __name__ == "__main__":
    with report_errors("train_lbgen", "Go on with --resume_from_checkpoint latest."):
        main(parse_args())
