"""Train small classifiers on the images of the base model, of LoRAs, and on scenes; test them on unbiased scenes.

    python training/measure_bias.py --lora out/paper out/context_swap --save_images images
    python training/biaslab/measure_downstream.py images/{base,paper,context_swap}.safetensors --output downstream.json

Every training set has the same number of images, every classifier the same number of steps; a seed varies a
classifier's initial weights and batches, not the images.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from lbgen_hf.biaslab.downstream import evaluate_training_set, make_test_sets, mean_over_seeds
from lbgen_hf.biaslab.scenes import render, sample_scenes
from lbgen_hf.checks import check_number
from lbgen_hf.errors import UserError, first_line, report_errors
from lbgen_hf.evaluation.biaslab import world
from lbgen_hf.files import require_output_file, write_atomically

BIAS = 0.6  # of the biased scenes: about what guidance makes of the base model's


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "images",
        type=Path,
        nargs="+",
        help="Files of `measure_bias.py --save_images`; each is compared with those before it.",
    )
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500, help="Of each classifier.")
    parser.add_argument("--output", type=Path, required=True, help="Raw results, JSON.")
    return parser


def read_images(path: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 64, 64) in [0, 1] and their labels (N,).

    Raises:
        UserError: it is no such file.
    """
    try:
        tensors = load_file(path)
        return tensors["images"] / 255, tensors["labels"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path} is no file that measure_bias.py --save_images wrote: {first_line(error)}") from error


def training_sets(paths: list[Path]) -> dict[str, tuple[Tensor, Tensor]]:
    """Name to images and labels: those of the files, and as many biased and unbiased scenes.

    Raises:
        UserError: a file cannot be read, holds other labels than the first, or has the name of another.
    """
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        raise UserError(f"several files have one name: {', '.join(map(str, paths))}; rename some, tables name them so")
    sets = {path.stem: read_images(path) for path in paths}
    labels = sets[paths[0].stem][1]
    for name, (_, others) in sets.items():
        if not torch.equal(others, labels):
            raise UserError(f"{name} has other labels than {paths[0].stem}: measure them in one run of measure_bias.py")
    for name, bias in [("biased scenes", BIAS), ("unbiased scenes", 0.0)]:
        scenes = sample_scenes(len(labels), bias=bias, seed=900_011, labels=labels)
        sets[name] = render(scenes).images, labels
    return sets


def main(args: argparse.Namespace) -> None:
    """Train, test, write.

    Raises:
        UserError: a file of images or a number is not as it must be, or the output cannot be written.
    """
    check_number("--num_seeds", args.num_seeds, at_least=2, integer=True)
    check_number("--steps", args.steps, at_least=20, integer=True)  # a tenth of them is the warm-up
    require_output_file(args.output)
    sets = training_sets(args.images)
    test_sets = make_test_sets()
    bar = tqdm(total=len(sets) * args.num_seeds, desc="classifiers", mininterval=10)
    rows, results = [], {}
    for name, (images, labels) in sets.items():
        correct = evaluate_training_set(
            images, labels, test_sets, range(args.num_seeds), lambda: bar.update(), steps=args.steps
        )
        for test, values in correct.items():
            accuracy = [min(max(bound, 0.0), 1.0) for bound in mean_over_seeds(values)]
            row = {"trained_on": name, "tested_on": test, "accuracy": accuracy}
            row["of_seeds"] = values.double().mean(1).tolist()
            row["above"] = {
                other: mean_over_seeds(values.double() - of_other[test].double())  # paired by seed and scene
                for other, of_other in results.items()
            }
            rows.append(row)
        results[name] = correct
        print(name, {test: round(values.double().mean().item(), 3) for test, values in correct.items()}, flush=True)
    settings = {"images": len(next(iter(sets.values()))[1]), "num_seeds": args.num_seeds, "steps": args.steps}
    write_atomically(args.output, json.dumps({"world": world(), "settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    with report_errors("measure_downstream"):
        main(make_parser().parse_args())
