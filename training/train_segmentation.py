"""Train UperNet on a pre-trained backbone, and measure its mean IoU (the paper's table 2).

    accelerate launch --num_processes 8 training/train_segmentation.py --backbone resnet50-lbgen --data ade20k \
        --train_batch_size 2 --output_dir segmenter
    python training/train_segmentation.py --config training/configs/segmentation_biaslab.yaml --backbone backbone \
        --data scenes

`--data` has ADE20K's layout. `--fraction` trains on a share of the images for the same number of epochs. The mean IoU
with its interval is the last line of metrics.jsonl. Killed at any moment, `--resume_from_checkpoint latest` goes on.
"""

import sys
from collections.abc import Sequence

from lbgen_hf.errors import report_errors


def make_parser():
    """The command line: `--config`, and an option for each field of `SegmentationConfig`."""
    from lbgen_hf.config_files import make_config_parser
    from lbgen_hf.evaluation.perception_config import SegmentationConfig

    return make_config_parser(SegmentationConfig, "train_segmentation", __doc__)


def main(arguments: Sequence[str]) -> None:
    """Train as a command line says.

    Raises:
        UserError: bad input, an image that cannot be read, or a loss that is not finite.
    """
    # Imported here, so that Ctrl-C while torch loads is reported as at any other time.
    from lbgen_hf.evaluation.segmentation import Segmentation
    from lbgen_hf.evaluation.training_config import log_to_stderr, parse_command_line

    config = parse_command_line(make_parser(), arguments)
    log_to_stderr()
    Segmentation(config).train()


if __name__ == "__main__":
    with report_errors("train_segmentation", "Resume with --resume_from_checkpoint latest."):
        main(sys.argv[1:])
