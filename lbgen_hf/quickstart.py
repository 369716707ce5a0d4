"""The main job with the shipped model: every class it knows, some images each; and how biased they are."""

import dataclasses
from pathlib import Path

import torch
from torchvision.transforms.functional import pil_to_tensor

from lbgen_hf.biaslab.judge import Judge
from lbgen_hf.biaslab.measure import Estimate, compare, judge_images, measure
from lbgen_hf.shipped import LBGEN_TINY, companions_of, resolve
from lbgen_hf.synthesis.folder import DatasetFolder, check_output
from lbgen_hf.synthesis.generate import Progress, generate, no_progress
from lbgen_hf.synthesis.sample import Job

IMAGES_PER_CLASS = 8
_SHOWN = ("class_accuracy", "mi_background", "mi_texture", "mi_place")


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """What was generated.

    Attributes:
        out: the dataset: of lbGen, or of the base model where no LoRA is shipped.
        base: the base model's, from the same noise; None where no LoRA is shipped.
        results: rows of `compare`, base against lbGen, as the judge sees them; empty without `base`.
    """

    out: Path
    base: Path | None
    results: list[dict]


def run_quickstart(out: Path, seed: int = 0, progress: Progress = no_progress) -> Quickstart:
    """Generate a small labelled dataset with lbgen-tiny into the folder `out`, and the base model's beside it.

    Raises:
        UserError: `out` holds something else, or cannot be written.
    """
    lora = companions_of(LBGEN_TINY).lora
    base = out.with_name(f"{out.name}-base") if lora else None
    folders = {out: lora} if base is None else {out: lora, base: None}
    for folder in folders:
        check_output(folder)
    measured = []
    for place, (folder, adapter) in enumerate(folders.items()):
        job = Job(lora=adapter, options={"images_per_class": IMAGES_PER_CLASS, "seed": seed})

        def report(done: int, total: int, before: int = place) -> None:
            progress(before * total + done, len(folders) * total)

        dataset = generate(folder, *job.prepare(), batch_size=32, progress=report)
        measured.append(_measure(dataset) if base else {})
    rows = compare(measured[1], measured[0]) if base else []
    return Quickstart(out, base, [row for row in rows if row["name"] in _SHOWN])


def _measure(dataset: DatasetFolder) -> dict[str, Estimate]:
    plan = dataset.plan
    images = {row["id"]: pil_to_tensor(row["image"]) / 255 for row in dataset.rows(["image"])}
    by_index = (range(first, first + plan.num_classes) for first in range(0, plan.num_images, plan.num_classes))
    # each class as often as the others: where an image was rejected, its index is missing
    whole = [torch.stack([images[i] for i in ids]) for ids in by_index if all(i in images for i in ids)]
    of_classes = torch.stack(whole, dim=1)
    judge = Judge.from_pretrained(resolve(LBGEN_TINY, "judge")).eval()
    return measure(judge_images(of_classes, dataset.class_names, judge))
