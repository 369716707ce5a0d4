"""Bias over the steps of a fine-tuning run of lbgen-tiny, as the shipped judge sees its validation images.

    python training/measure_curve.py out --output curve.json

Reads what training/train_lbgen.py left in out/validation: the same noise at every step. Intervals are 95 %, from a
bootstrap over the images of each class.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from lbgen_hf.biaslab.measure import compare, format_comparison, judge_images, measure
from lbgen_hf.biaslab.scenes import CLASSES, IMAGE_SIZE
from lbgen_hf.errors import UserError, first_line, report_errors
from lbgen_hf.evaluation.biaslab import world
from lbgen_hf.evaluation.observers import load_observers
from lbgen_hf.files import BROKEN_IMAGE, require_output_file, write_atomically

GRID_PADDING = 2  # torchvision's


def read_grid(path: Path) -> Tensor:
    """Images (C, n, 3, H, W) in [0, 1] out of a grid with a row for each class.

    Raises:
        UserError: it is no image, or the grid is not of every class.
    """
    try:
        grid = pil_to_tensor(Image.open(path).convert("RGB")) / 255
    except BROKEN_IMAGE as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
    pitch = IMAGE_SIZE + GRID_PADDING
    rows, columns = ((size - GRID_PADDING) // pitch for size in grid.shape[1:])
    if rows != len(CLASSES):
        raise UserError(f"{path} shows {rows} classes; train with --num_validation_classes {len(CLASSES)}")
    cells = grid[:, GRID_PADDING:, GRID_PADDING:].unfold(1, IMAGE_SIZE, pitch).unfold(2, IMAGE_SIZE, pitch)
    return cells[:, :rows, :columns].permute(1, 2, 0, 3, 4).contiguous()


def main(args: argparse.Namespace) -> None:
    """Read, judge, print.

    Raises:
        UserError: the run has no validation images, or the output cannot be written.
    """
    paths = sorted((args.run / "validation").glob("step-*.png"))
    if not paths:
        raise UserError(f"{args.run} has no validation images; train with --validation_steps above 0")
    if args.output:
        require_output_file(args.output)
    observers = load_observers()
    images = [read_grid(path) for path in paths]
    measured = [measure(judge_images(each, CLASSES, **observers)) for each in images]
    tables = {path.stem: compare(measured[0], one) for path, one in zip(paths, measured, strict=True)}
    for name, rows in tables.items():
        print(f"{name}\n\n{format_comparison(rows)}\n", flush=True)
    if args.output:
        content = {"options": {"images_per_class": str(images[0].shape[1])}, "world": world(), "tables": tables}
        write_atomically(args.output, json.dumps(content, indent=1) + "\n")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="measure_curve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="The --output_dir of training/train_lbgen.py.")
    parser.add_argument("--output", type=Path, help="Write the results as JSON.")
    return parser


if __name__ == "__main__":
    with report_errors("measure_curve"), torch.no_grad():
        main(make_parser().parse_args())
