"""Pre-train an image backbone on a generated dataset, by the paper's recipe (table 5).

    accelerate launch training/train_backbone.py --data my-dataset --output_dir backbone
    accelerate launch --num_processes 8 training/train_backbone.py --config training/configs/backbone_resnet50.yaml \
        --data my-dataset --validation_data imagenet/val --output_dir resnet50-lbgen
    accelerate launch training/train_backbone.py --config training/configs/backbone_biaslab.yaml --data my-dataset

The defaults of the options are the paper's for ResNet50; `--config` files change them, and the command line changes
both. The output folder is a timm model: `timm.create_model("local-dir:backbone", pretrained=True)`. Killed at any
moment, `--resume_from_checkpoint latest` ends with the bytes of an uninterrupted run.
"""

import sys
from collections.abc import Sequence

from lbgen_hf.errors import report_errors


def main(arguments: Sequence[str]) -> None:
    """Train as a command line says.

    Raises:
        UserError: bad input, an image that cannot be read, or a loss that is not finite.
    """
    # Imported here, so that Ctrl-C while torch loads is reported as at any other time.
    from lbgen_hf.evaluation.pretraining import Pretraining
    from lbgen_hf.evaluation.pretraining_config import make_parser, parse_config
    from lbgen_hf.evaluation.training_config import log_to_stderr

    config = parse_config(arguments, make_parser(description=__doc__))
    log_to_stderr()
    Pretraining(config).train()


if __name__ == "__main__":
    with report_errors("train_backbone", "Resume with --resume_from_checkpoint latest."):
        main(sys.argv[1:])
