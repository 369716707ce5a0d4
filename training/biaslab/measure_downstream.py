"""Train small classifiers on the images of the base model, of LoRAs, and on scenes; test them on unbiased scenes.

    python training/biaslab/measure_downstream.py --lora paper=lbgen_hf/biaslab/models/lora --output downstream.json

Every training set has the same number of images, every classifier the same number of steps; a seed varies a
classifier's initial weights and batches, not the images.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lbgen_hf import LbGenPipeline
from lbgen_hf.biaslab.downstream import estimate_accuracy, evaluate_training_set, make_test_sets
from lbgen_hf.biaslab.measure import sample_images
from lbgen_hf.biaslab.scenes import CLASSES, WORLD_VERSION, render, sample_scenes, world_hash
from lbgen_hf.errors import UserError, report_errors
from lbgen_hf.files import write_atomically

BIAS = 0.6  # of the biased scenes: about what guidance makes of the base model's


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lora", nargs="*", default=[], metavar="NAME=FOLDER", help="LoRAs of lbgen-tiny.")
    parser.add_argument("--images_per_class", type=int, default=100)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500, help="Of each classifier.")
    parser.add_argument("--output", type=Path, required=True, help="Raw results, JSON.")
    return parser.parse_args()


def training_sets(args: argparse.Namespace, labels: Tensor) -> dict[str, Tensor]:
    """Name to images (N, 3, 64, 64), class by class."""
    pipe = LbGenPipeline.from_pretrained("lbgen-tiny")
    pipe.set_progress_bar_config(disable=True)

    def sample() -> Tensor:
        call = {"num_inference_steps": args.num_inference_steps}
        return sample_images(pipe, CLASSES, args.images_per_class, seed=3, **call).flatten(0, 1)

    sets = {"base": sample()}
    for item in args.lora:
        name, _, folder = item.partition("=")
        if not folder:
            raise UserError(f"--lora takes NAME=FOLDER, got {item!r}")
        pipe.load_lora_weights(folder)
        sets[name] = sample()
        pipe.unload_lora_weights()
    for name, bias in [("biased scenes", BIAS), ("unbiased scenes", 0.0)]:
        scenes = sample_scenes(len(labels), bias=bias, seed=900_011, labels=labels)
        sets[name] = render(scenes).images
    return sets


def main(args: argparse.Namespace) -> None:
    labels = torch.arange(len(CLASSES)).repeat_interleave(args.images_per_class)
    sets = training_sets(args, labels)
    test_sets = make_test_sets()
    bar = tqdm(total=len(sets) * args.num_seeds, desc="classifiers", mininterval=10)
    rows, estimates = [], {}
    for name, images in sets.items():
        correct = evaluate_training_set(
            images, labels, test_sets, range(args.num_seeds), lambda: bar.update(), steps=args.steps
        )
        estimates[name] = {test: estimate_accuracy(values) for test, values in correct.items()}
        for test, estimate in estimates[name].items():
            row = {"trained_on": name, "tested_on": test, "accuracy": estimate.triple}
            row["of_seeds"] = correct[test].double().mean(1).tolist()
            gain = estimate.replicates - estimates["base"][test].replicates
            row["above_base"] = [
                estimate.value - estimates["base"][test].value,
                *torch.quantile(gain, gain.new_tensor([0.025, 0.975])).tolist(),
            ]
            rows.append(row)
        print(name, {test: round(e.value, 3) for test, e in estimates[name].items()}, flush=True)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    world = {"version": WORLD_VERSION, "hash": world_hash()}
    write_atomically(args.output, json.dumps({"world": world, "settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    with report_errors("measure_downstream"):
        main(parse_args())
