"""The main job with the shipped model: every class it knows, some pictures each; and how biased they are."""

import dataclasses
from pathlib import Path

import torch
from torchvision.transforms.functional import pil_to_tensor

from lbgen_hf.biaslab import MODELS
from lbgen_hf.biaslab.judge import Judge
from lbgen_hf.biaslab.measure import Estimate, compare, judge_images, measure
from lbgen_hf.pipeline_lbgen import LORA_FILE
from lbgen_hf.synthesis.card import read_pictures
from lbgen_hf.synthesis.generate import Progress, generate, no_progress
from lbgen_hf.synthesis.job import Job
from lbgen_hf.synthesis.settings import Settings, check_stranger

IMAGES_PER_CLASS = 8
_SHOWN = ("class_accuracy", "mi_background", "mi_texture", "mi_place")


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """What was drawn.

    Attributes:
        out: the dataset: of lbGen, or of the base model where no LoRA is shipped.
        base: the base model's, from the same noise; None where no LoRA is shipped.
        figures: rows of `compare`, base against lbGen, as the judge sees them; empty without `base`.
    """

    out: Path
    base: Path | None
    figures: list[dict]


def run_quickstart(out: Path, seed: int = 0, progress: Progress = no_progress) -> Quickstart:
    """Draw a small labelled dataset with lbgen-tiny into the folder `out`, and the base model's beside it.

    Raises:
        UserError: `out` holds something else, or cannot be written.
    """
    lora = MODELS / "lora" if (MODELS / "lora" / LORA_FILE).is_file() else None
    base = out.with_name(f"{out.name}-base") if lora else None
    folders = {out: lora} if base is None else {out: lora, base: None}
    for folder in folders:
        check_stranger(folder)
    figures = []
    for place, (folder, adapter) in enumerate(folders.items()):
        job = Job(lora=adapter and str(adapter), options={"images_per_class": IMAGES_PER_CLASS, "seed": seed})
        settings, drawer = job.prepare()

        def report(done: int, total: int, before: int = place) -> None:
            progress(before * total + done, len(folders) * total)

        generate(folder, settings, drawer, batch_size=32, progress=report)
        figures.append(_measure(folder, settings) if base else {})
    rows = compare(figures[1], figures[0]) if base else []
    return Quickstart(out, base, [row for row in rows if row["name"] in _SHOWN])


def _measure(out: Path, settings: Settings) -> dict[str, Estimate]:
    plan = settings.plan
    pictures = read_pictures(out, settings, list(range(plan.num_images)))
    images = torch.stack([pil_to_tensor(pictures[image_id]) for image_id in range(plan.num_images)]) / 255
    of_classes = images.unflatten(0, (plan.images_per_class, plan.num_classes)).transpose(0, 1)
    return measure(judge_images(of_classes, settings.classes, Judge.from_pretrained(MODELS / "judge").eval()))
