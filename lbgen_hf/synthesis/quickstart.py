"""The main job with the shipped model: every class it knows, some pictures each."""

from pathlib import Path

from lbgen_hf.synthesis.generate import Progress, generate, no_progress
from lbgen_hf.synthesis.job import Job
from lbgen_hf.synthesis.settings import check_stranger

IMAGES_PER_CLASS = 8


def run_quickstart(out: Path, seed: int = 0, progress: Progress = no_progress) -> None:
    """Draw a small labelled dataset with lbgen-tiny into the folder `out`.

    Raises:
        UserError: `out` holds something else, or cannot be written.
    """
    check_stranger(out)
    settings, drawer = Job(options={"images_per_class": IMAGES_PER_CLASS, "seed": seed}).prepare()
    generate(out, settings, drawer, batch_size=32, progress=progress)
