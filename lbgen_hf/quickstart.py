"""The main job with the shipped model: every class it knows, some images each; and how biased they are."""

import dataclasses
from pathlib import Path

import torch
from torchvision.transforms.functional import pil_to_tensor

from lbgen_hf.biaslab.judge import Judge
from lbgen_hf.biaslab.measure import Estimate, judge_images, measure
from lbgen_hf.errors import UserError
from lbgen_hf.shipped import LBGEN_TINY, companions_of, resolve
from lbgen_hf.synthesis.create import check_output
from lbgen_hf.synthesis.folder import DatasetFolder
from lbgen_hf.synthesis.generate import Progress, generate, no_progress
from lbgen_hf.synthesis.sample import Job

IMAGES_PER_CLASS = 8
# Beside each mutual information what it would hide: the entropy that is left, and the images that turned plain.
METRICS = (
    "class_accuracy",
    *(f"{metric}_{name}" for name in ("background", "texture", "place") for metric in ("mi", "mi_marked", "entropy")),
    "plain_background",
)


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """What was generated, all from the same noise.

    Attributes:
        folders: name of the model to its dataset: the base model, and what LoRAs are shipped.
        results: name of the model to `measure`'s estimates, as the judge sees its images.
    """

    folders: dict[str, Path]
    results: dict[str, dict[str, Estimate]]


def run_quickstart(out: Path, seed: int = 0, progress: Progress = no_progress) -> Quickstart:
    """Generate a small labelled dataset with lbgen-tiny into the folder `out`, and the other models' beside it.

    Raises:
        UserError: `out` holds something else, is the root, or cannot be written.
    """
    if out.name in ("", ".."):
        out = out.resolve()
    if not out.name:
        raise UserError(f"nothing can be written beside {out}; give another folder")
    loras = companions_of(LBGEN_TINY).loras
    suffixes = {"base": "-base", **{title: lora.removeprefix(LBGEN_TINY) for title, lora in loras.items()}}
    # Where no LoRA is shipped, the base model's images are the dataset.
    folders = (
        {title: out.with_name(out.name + suffix) for title, suffix in suffixes.items()} if loras else {"base": out}
    )
    for folder in folders.values():
        check_output(folder)
    results = {}
    for place, (title, folder) in enumerate(folders.items()):
        job = Job(lora=loras.get(title), options={"images_per_class": IMAGES_PER_CLASS, "seed": seed})

        def report(done: int, total: int, before: int = place) -> None:
            progress(before * total + done, len(folders) * total)

        results[title] = _measure(generate(folder, *job.prepare(), batch_size=32, progress=report))
    return Quickstart(folders, results)


def _measure(dataset: DatasetFolder) -> dict[str, Estimate]:
    plan = dataset.plan
    images = {row["id"]: pil_to_tensor(row["image"]) / 255 for row in dataset.rows(["image"])}
    by_index = (range(first, first + plan.num_classes) for first in range(0, plan.num_images, plan.num_classes))
    # each class as often as the others: where an image was rejected, its index is missing
    whole = [torch.stack([images[i] for i in ids]) for ids in by_index if all(i in images for i in ids)]
    of_classes = torch.stack(whole, dim=1)
    judge = Judge.from_pretrained(resolve(LBGEN_TINY, "judge")).eval()
    return measure(judge_images(of_classes, dataset.class_names, judge))
