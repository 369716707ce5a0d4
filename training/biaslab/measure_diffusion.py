"""Measure the base model with a judge: does a class name give its class and its bias, and a caption what it says?

The second judge looks at the same images, to say how far the first one can be trusted.

python training/biaslab/measure_diffusion.py --models_dir lbgen_hf/biaslab/models
"""

import argparse
from pathlib import Path

import torch
from torchvision.utils import save_image
from trainer import log_results

from lbgen_hf import LbGenPipeline
from lbgen_hf.biaslab.captions import caption_scenes
from lbgen_hf.biaslab.judge import ATTRIBUTES, Judge
from lbgen_hf.biaslab.measure import agreement, judge_images, measure, sample_images
from lbgen_hf.biaslab.scenes import CLASS_OF_SHAPE, CLASSES, SHAPE_NAMES, sample_scenes
from lbgen_hf.errors import report_errors


def names_shape(caption: str, shape: str) -> bool:
    """Whether the shape is one that the caption's word for it stands for: "bow" stands for two."""
    return not {shape, CLASS_OF_SHAPE.get(shape)}.isdisjoint(caption.split())


def measure_captions(pipe: LbGenPipeline, judge: Judge, num_captions: int) -> tuple[dict[str, float], torch.Tensor]:
    """How often full captions get each attribute that they name, and the images."""
    scenes = sample_scenes(num_captions, seed=900_004)
    captions = caption_scenes(scenes, mention=1.0, templates=["{}"])
    generators = [torch.Generator().manual_seed(i) for i in range(num_captions)]
    images = torch.cat(
        [
            pipe(prompt=captions[i : i + 50], generator=generators[i : i + 50], output_type="pt").images
            for i in range(0, num_captions, 50)
        ]
    )
    seen = judge.judge(images)
    shapes = [SHAPE_NAMES[shape] for shape in seen["shape"].tolist()]
    right = {name: seen[name] == getattr(scenes, f"{name}s") for name in ATTRIBUTES}
    right["shape"] = torch.tensor(list(map(names_shape, captions, shapes)))
    results = {}
    for name in ATTRIBUTES:
        truth = getattr(scenes, f"{name}s")
        named = truth > 0 if name != "shape" else torch.ones_like(truth, dtype=torch.bool)
        results[f"caption_{name}"] = right[name][named].float().mean().item()
        results[f"num_caption_{name}"] = int(named.sum())
    return results, images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models_dir", type=Path, required=True)
    parser.add_argument("--images_per_class", type=int, default=50)
    parser.add_argument("--num_captions", type=int, default=400)
    parser.add_argument("--sample", type=Path, help="also save images of each class, and of captions, here (PNG)")
    args = parser.parse_args()
    pipe = LbGenPipeline.from_pretrained(args.models_dir / "pipeline", class_labels=CLASSES)
    pipe.set_progress_bar_config(disable=True)
    judge, second = (Judge.from_pretrained(args.models_dir / name).float().eval() for name in ("judge", "second_judge"))

    images = sample_images(pipe, CLASSES, args.images_per_class, seed=1)
    named = {name: m.value for name, m in measure(judge_images(images, CLASSES, judge)).items()}
    captioned, caption_images = measure_captions(pipe, judge, args.num_captions)
    if args.sample:
        save_image(torch.cat([images[:, :8].flatten(0, 1), caption_images[:64]]), args.sample, nrow=16)
    everything = torch.cat([images.flatten(0, 1), caption_images])
    agreed = agreement(judge.judge(everything), second.judge(everything))
    log_results(
        args.models_dir,
        "diffusion",
        images_per_class=args.images_per_class,
        **named,
        **captioned,
        **{f"judges_agree_{name}": share for name, share in agreed.items()},
    )


if __name__ == "__main__":
    with report_errors("measure_diffusion"):
        main()
