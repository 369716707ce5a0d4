"""Fine-tune a text-to-image model so that its images of a class name carry little bias: lbGen (CVPR 2025).

    accelerate launch training/train_lbgen.py
    accelerate launch --num_processes 8 training/train_lbgen.py --config training/configs/paper.yaml --output_dir lora

With no arguments it fine-tunes the shipped lbgen-tiny, with training/configs/tiny.yaml. The defaults of the options are
the paper's (table 8); `--config` files change them, and the command line changes both. The same from Python:

    from lbgen_hf import LbGenConfig, LbGenTrainer

    LbGenTrainer(LbGenConfig.from_yaml("training/configs/tiny.yaml", output_dir="lora")).train()
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from lbgen_hf.errors import report_errors

CONFIGS = Path(__file__).parent / "configs"


def make_parser():
    """The script's options: `--config`, and one for each field of `LbGenConfig`."""
    from lbgen_hf.fine_tuning.config import make_parser

    return make_parser(description=__doc__)


def main(arguments: Sequence[str]) -> None:
    """Train as a command line says.

    Raises:
        UserError: bad input, or a loss that is not finite.
    """
    # Imported here, so that Ctrl-C while torch loads is reported as at any other time.
    import logging
    import os

    from tqdm.contrib.logging import logging_redirect_tqdm

    from lbgen_hf.fine_tuning.config import parse_config
    from lbgen_hf.fine_tuning.trainer import LbGenTrainer
    from lbgen_hf.hub import quiet_loading
    from lbgen_hf.shipped import companions_of

    quiet_loading()
    trainer = LbGenTrainer(parse_config(arguments, make_parser(), CONFIGS))
    # stderr is for errors and the progress bar
    logging.basicConfig(format="%(message)s", stream=sys.stdout, force=True)
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger("lbgen_hf").setLevel(logging.INFO)
    base = trainer.config.pretrained_model_name_or_path
    if companions_of(base).shipped:
        logging.getLogger("lbgen_hf").info(
            f"Fine-tuning {base}. For Stable Diffusion 1.5: accelerate launch training/train_lbgen.py"
            " --config training/configs/paper.yaml --output_dir lbgen-lora"
        )
    with logging_redirect_tqdm():
        trainer.train()


if __name__ == "__main__":
    with report_errors("train_lbgen", "Resume with --resume_from_checkpoint latest."):
        main(sys.argv[1:])
