"""Detection and segmentation in biaslab, from a backbone of backbone_biaslab.yaml: AP, mean IoU and their time.

    python tests/benchmarks/perception.py BACKBONE WORK_FOLDER [--fractions 1 0.5 0.2 0.1]

Renders 2,400 training and 480 validation scenes without bias in both layouts, and trains by the shipped configs. A run
that was killed resumes. `seconds` are of the wall clock, and `cpu_seconds` of this process, on a shared machine.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from timing import write_results

from lbgen_hf.config_files import make_config_parser
from lbgen_hf.evaluation import biaslab
from lbgen_hf.evaluation.biaslab_layouts import write_ade20k, write_coco
from lbgen_hf.evaluation.detection import Detection
from lbgen_hf.evaluation.perception_config import DetectionConfig, SegmentationConfig
from lbgen_hf.evaluation.segmentation import Segmentation
from lbgen_hf.evaluation.training_config import log_to_stderr, parse_command_line

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
NUM_IMAGES = {"train": 2400, "val": 480}
TASKS = {"segmentation": (Segmentation, SegmentationConfig), "detection": (Detection, DetectionConfig)}


def train(task: str, backbone: Path, work: Path, fraction: float) -> dict:
    run_class, config_class = TASKS[task]
    options = {"backbone": backbone, "data": work / task, "output_dir": work / f"{task}-{fraction:g}"}
    options |= {"fraction": fraction, "resume_from_checkpoint": "latest"}
    arguments = [f"--config={CONFIGS / f'{task}_biaslab.yaml'}", *(f"--{k}={v}" for k, v in options.items())]
    config = parse_command_line(make_config_parser(config_class, task), arguments)
    started, cpu_started = time.perf_counter(), time.process_time()
    row = run_class(config).train()
    return {
        **row,
        "fraction": fraction,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu_started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--fractions", type=float, nargs="+", default=[1.0, 0.5, 0.2, 0.1])
    args = parser.parse_args()
    torch.set_num_threads(1)
    log_to_stderr()
    for split, num_images in NUM_IMAGES.items():
        write_coco(args.work / "detection", split, num_images)
        write_ade20k(args.work / "segmentation", split, num_images)
    last = (args.backbone / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    results = {"world": biaslab.world(), "num_images": NUM_IMAGES, "backbone": json.loads(last)}
    for task in TASKS:
        results[task] = [train(task, args.backbone, args.work, fraction) for fraction in args.fractions]
        print(write_results("perception", results))


if __name__ == "__main__":
    main()
