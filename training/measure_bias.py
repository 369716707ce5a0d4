"""Measure how biased lbgen-tiny's images are, with and without LoRAs, as the shipped judge sees them.

    python training/measure_bias.py                              # the base model alone
    python training/measure_bias.py --lora out other-seed/out --output measured.json
    python training/measure_bias.py --lora out/checkpoint-*      # the whole curve against steps
    python training/measure_bias.py --lora out --judge second_judge  # is it a habit of the first judge?

All sample from the same noise. Intervals are 95 %, from a bootstrap over the images of each class.
"""

import argparse
import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lbgen_hf.biaslab import MODELS
from lbgen_hf.biaslab.measure import (
    ATTRIBUTES,
    Judgements,
    blind_of,
    by_class,
    by_value,
    compare,
    format_comparison,
    judge_images,
    measure,
    measure_blind,
    sample_images,
)
from lbgen_hf.biaslab.scenes import CLASSES
from lbgen_hf.checks import check_number
from lbgen_hf.errors import UserError, report_errors
from lbgen_hf.evaluation.biaslab import world
from lbgen_hf.evaluation.observers import load_observers
from lbgen_hf.files import require_output_file, require_writable, sha256_of, write_atomically
from lbgen_hf.pipeline_lbgen import LORA_FILE, LbGenPipeline
from lbgen_hf.shipped import LBGEN_TINY
from lbgen_hf.synthesis.sample import inspect_model

RECORDED = ("pretrained_model_name_or_path", "images_per_class", "num_inference_steps", "guidance_scale", "seed")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="measure_bias", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pretrained_model_name_or_path", default=LBGEN_TINY)
    parser.add_argument(
        "--lora", type=Path, nargs="*", default=[], help="Folders with pytorch_lora_weights.safetensors."
    )
    parser.add_argument("--models", type=Path, default=MODELS, help="The folder of the judges, clip/ and quality/.")
    parser.add_argument("--judge", choices=["judge", "second_judge"], default="judge")
    parser.add_argument("--images_per_class", type=int, default=100)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--guidance_scale", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1, help="Of the noise.")
    parser.add_argument("--output", type=Path, help="Write the results as JSON.")
    parser.add_argument(
        "--save_images", type=Path, help="Keep the images in this folder, for training/biaslab/measure_downstream.py."
    )
    return parser


def images_of(path: Path | None, recipe: dict[str, str], sample: Callable[[], Tensor]) -> Tensor:
    """Images (C, n, 3, H, W) in [0, 1]: those that an earlier run kept at `path` after the same recipe, or new ones.

    The file has them as 8 bits, class by class, with their labels.
    """
    if path is None:
        return sample()
    if path.is_file():
        with contextlib.suppress(SafetensorError), safe_open(path, "pt") as file:  # a damaged one is made again
            if file.metadata() == recipe:
                images, labels = file.get_tensor("images"), file.get_tensor("labels")
                return images.unflatten(0, (int(labels.max()) + 1, -1)) / 255
    images = (sample() * 255).round().to(torch.uint8)
    labels = torch.arange(len(images)).repeat_interleave(images.shape[1])
    write_atomically(path, save({"images": images.flatten(0, 1), "labels": labels}, metadata=recipe))
    return images / 255


def _groups(judgements: Judgements) -> dict[str, dict[str, list[dict]]]:
    """Attribute to its numbers for each class and for each value: a mean can hide two groups."""
    return {
        name: {"classes": by_class(judgements, CLASSES, name), "values": by_value(judgements, name)}
        for name in ATTRIBUTES
    }


def main(args: argparse.Namespace) -> None:
    """Sample, judge, print.

    Raises:
        UserError: a folder holds no LoRA, a number is out of range, or the output cannot be written.
    """
    check_number("--images_per_class", args.images_per_class, at_least=2, integer=True)
    check_number("--num_inference_steps", args.num_inference_steps, at_least=1, at_most=1000, integer=True)
    check_number("--guidance_scale", args.guidance_scale, at_least=0)
    if args.output:
        require_output_file(args.output)
    if args.save_images:
        require_writable(args.save_images.resolve())
    for folder in args.lora:
        if not (folder / LORA_FILE).is_file():
            raise UserError(f"{folder} holds no {LORA_FILE}")
    names = [folder.resolve().name for folder in args.lora]
    if "base" in names or (args.save_images and len(set(names)) < len(names)):
        raise UserError(f"the images of {', '.join(map(str, args.lora))} need a name each, and none base; rename some")
    observers = load_observers(args.models, args.judge)
    pipe = LbGenPipeline.from_pretrained(args.pretrained_model_name_or_path)
    pipe.set_progress_bar_config(disable=True)

    recorded = {name: str(getattr(args, name)) for name in RECORDED}
    recipe = recorded | inspect_model(args.pretrained_model_name_or_path)[0]  # the weights, wherever they lie

    def judged(name: str, lora: Path | None = None) -> Judgements:
        def sample() -> Tensor:
            call = {"num_inference_steps": args.num_inference_steps, "guidance_scale": args.guidance_scale}
            return sample_images(pipe, CLASSES, args.images_per_class, args.seed, **call)

        weights = sha256_of(lora / LORA_FILE) if lora else ""
        path = args.save_images / f"{name}.safetensors" if args.save_images else None
        return judge_images(images_of(path, {**recipe, "lora": weights}, sample), CLASSES, **observers)

    base = judged("base")
    measured = measure(base)
    tables = {"base": compare(measured, measured)}
    groups = {"base": _groups(base)}
    for folder in args.lora:
        pipe.load_lora_weights(folder)
        tuned = judged(folder.resolve().name, folder)
        pipe.unload_lora_weights()
        tables[str(folder)] = compare(measured | blind_of(measured), measure(tuned) | measure_blind(base, tuned))
        groups[str(folder)] = _groups(tuned)
    for name, rows in tables.items():
        if name != "base" or len(tables) == 1:
            print(f"{name}\n\n{format_comparison(rows)}\n", flush=True)
    if args.output:
        content = {"options": {**recorded, "judge": args.judge}, "world": world(), "tables": tables, "groups": groups}
        write_atomically(args.output, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    with report_errors("measure_bias"):
        main(make_parser().parse_args())
