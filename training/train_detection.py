"""Train Mask R-CNN on a pre-trained backbone, and measure its box AP (the paper's table 2).

    accelerate launch --num_processes 8 training/train_detection.py --backbone resnet50-lbgen --data coco \
        --output_dir detector --mixed_precision bf16
    accelerate launch --num_processes 8 training/train_detection.py --backbone resnet50-lbgen --data coco \
        --fraction 0.1 --output_dir detector-0.1
    python training/train_detection.py --config training/configs/detection_biaslab.yaml --backbone backbone \
        --data scenes

`--data` has COCO's layout. `--fraction` trains on a share of the images for the same number of epochs. AP and AP50 with
intervals are the last line of metrics.jsonl. Killed at any moment, `--resume_from_checkpoint latest` goes on.
"""

import sys
from collections.abc import Sequence

from lbgen_hf.errors import report_errors


def make_parser():
    """The command line: `--config`, and an option for each field of `DetectionConfig`."""
    from lbgen_hf.config_files import make_config_parser
    from lbgen_hf.evaluation.perception_config import DetectionConfig

    return make_config_parser(DetectionConfig, "train_detection", __doc__)


def main(arguments: Sequence[str]) -> None:
    """Train as a command line says.

    Raises:
        UserError: bad input, an image that cannot be read, or a loss that is not finite.
    """
    # Imported here, so that Ctrl-C while torch loads is reported as at any other time.
    from lbgen_hf.evaluation.detection import Detection
    from lbgen_hf.evaluation.training_config import log_to_stderr, parse_command_line

    config = parse_command_line(make_parser(), arguments)
    log_to_stderr()
    Detection(config).train()


if __name__ == "__main__":
    with report_errors("train_detection", "Resume with --resume_from_checkpoint latest."):
        main(sys.argv[1:])
