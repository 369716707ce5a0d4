"""LbGenPipeline against the plain StableDiffusionPipeline, on the same images.

    python tests/benchmarks/pipeline.py

Both have the very same components (lbgen-tiny's) and sample the same classes from the same noise; what differs is what
LbGenPipeline adds. Target: a median ratio of at least 0.98 at batch sizes 1, 4 and 16.
"""

import argparse
import functools

import torch
from diffusers import StableDiffusionPipeline
from timing import compare, write_results

from lbgen_hf import LbGenPipeline, image_seed

BATCH_SIZES = 1, 4, 16


def sample_plain(plain: StableDiffusionPipeline, names: list[str], seeds: list[int], steps: int) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return plain(names, num_inference_steps=steps, guidance_scale=2.0, generator=generators, output_type="pt").images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="lbgen-tiny")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()

    pipe = LbGenPipeline.from_pretrained(args.model)
    plain = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    for each in (pipe, plain):
        each.set_progress_bar_config(disable=True)
    results = {"model": args.model, "steps": args.steps}
    for batch_size in BATCH_SIZES:
        class_ids = [i % len(pipe.class_labels) for i in range(batch_size)]
        names = [pipe.class_labels[i] for i in class_ids]
        seeds = [image_seed(0, class_id, i // len(pipe.class_labels)) for i, class_id in enumerate(class_ids)]
        functions = {
            "plain": functools.partial(sample_plain, plain, names, seeds, args.steps),
            "lbgen": lambda ids=class_ids: pipe(ids, seed=0, num_inference_steps=args.steps, output_type="pt").images,
        }
        difference = (functions["plain"]() - functions["lbgen"]()).abs().max().item()
        if difference > 1e-4:
            raise SystemExit(f"the two pipelines sample different images: they differ by {difference}")
        results[f"batch {batch_size}"] = compare(functions, repeats=args.repeats)
        print(f"batch {batch_size}: {results[f'batch {batch_size}']['lbgen']}")
    print(f"wrote {write_results('pipeline', results)}")


if __name__ == "__main__":
    main()
