"""Synthesis side by side with the baseline, with the same model, and what each preset's speed costs in quality.

    python tests/benchmarks/synthesis.py              # speed
    python tests/benchmarks/synthesis.py --quality    # 1,600 images a preset, judged; long
    python tests/benchmarks/synthesis.py --sd15       # one step of SD1.5 at 512x512, lever by lever; random weights
    python tests/benchmarks/synthesis.py --deepcache  # our feature cache against the package DeepCache

The baseline, as in the authors' published code: the plain pipeline, one class at a time, its LoRA unfused, each image
saved as PNG in the thread that samples. Writes results/synthesis.json, results/synthesis_quality.json,
results/synthesis_sd15.json and results/deepcache.json. DeepCache is installed with `pip install --no-deps DeepCache`.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from timing import compare, write_results
from torch.utils.flop_counter import FlopCounterMode

from lbgen_hf.biaslab.scenes import CLASSES
from lbgen_hf.pipeline_lbgen import LbGenPipeline
from lbgen_hf.sampling import CachedUNet, build_scheduler, decode_latents, sample_latents
from lbgen_hf.shipped import LBGEN_TINY, resolve
from lbgen_hf.synthesis.generate import generate
from lbgen_hf.synthesis.plan import PRESETS
from lbgen_hf.synthesis.sample import Job

FAST = PRESETS["fast"]
VARIANTS = {
    "paper": PRESETS["paper"],
    "paper, guidance start 0.12": {**PRESETS["paper"], "guidance_start": 0.12},
    "paper, cache interval 2": {**PRESETS["paper"], "cache_interval": 2},
    "fast, guidance start 0": {**FAST, "guidance_start": 0.0},
    "fast": FAST,
    "fast, guidance stop 0.8": {**FAST, "guidance_start": 0.0, "guidance_stop": 0.8},
    "fast, cache interval 2": {**FAST, "cache_interval": 2},
    "fast, cache interval 3": {**FAST, "cache_interval": 3},
}
JUDGED = tuple(name for name in VARIANTS if not name.startswith("paper,"))


def baseline(images_per_class: int) -> Callable[[], None]:
    """Samples into a folder of PNGs."""
    pipe = StableDiffusionPipeline.from_pretrained(resolve(LBGEN_TINY, "pipeline"), safety_checker=None)
    pipe.load_lora_weights(resolve(LBGEN_TINY, "lora"))
    pipe.set_progress_bar_config(disable=True)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name in CLASSES:
                images = pipe(name, num_images_per_prompt=images_per_class, guidance_scale=2.0).images
                for index, image in enumerate(images):
                    image.save(Path(folder) / f"{name}-{index}.png")

    return run


def ours(images_per_class: int, options: dict) -> Callable[[], None]:
    """Generates a dataset folder."""
    job = Job(lora=LBGEN_TINY, options={"images_per_class": images_per_class, **options})
    settings, sampler = job.prepare()

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            generate(Path(folder) / "out", settings, sampler, batch_size=64)

    return run


def count_gflops(run: Callable[[], None], num_images: int) -> float:
    """GFLOP an image."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / num_images / 1e9


def time_all(images_per_class: int, repeats: int) -> dict:
    """Each variant against the baseline: seconds, ratio with its quartiles, and counted GFLOP an image."""
    ways = {"baseline": baseline(images_per_class)}
    ways |= {name: ours(images_per_class, options) for name, options in VARIANTS.items()}
    timed = compare(ways, repeats)
    for name, run in ways.items():
        timed[name]["gflop_an_image"] = round(count_gflops(run, 16 * images_per_class), 2)
    return {"images": 16 * images_per_class, "ways": timed}


@torch.no_grad()
def time_sd15_step(repeats: int) -> dict:
    """One step of SD1.5 in bf16 at 512x512, as the baseline takes it and with one lever after the other."""
    torch.set_default_dtype(torch.bfloat16)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval()
    sample, embeddings = torch.randn(2, 4, 64, 64), torch.randn(2, 77, 768)
    torch.set_default_dtype(torch.float32)
    timestep = torch.tensor(500)
    unet.add_adapter(LoraConfig(r=128, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))

    channels_last = copy.deepcopy(unet).to(memory_format=torch.channels_last)
    for each in (unet, channels_last):
        each.disable_adapters()  # what fused ones cost: the products of the base weights alone

    def step(batch: int) -> Callable[[], None]:
        return lambda: unet(sample[:batch], timestep, embeddings[:batch])

    def in_channels_last() -> None:
        channels_last(sample.to(memory_format=torch.channels_last), timestep, embeddings)

    def unfused() -> None:
        unet.enable_adapters()
        unet(sample, timestep, embeddings)
        unet.disable_adapters()

    cached = CachedUNet(unet, interval=10**6)

    def shallow(batch: int) -> Callable[[], None]:
        return lambda: cached(sample[:batch], timestep, embeddings[:batch])

    cached(sample, timestep, embeddings)  # the deep features, once
    timed = compare(
        {
            "guided, LoRA unfused": unfused,
            "guided, LoRA fused": step(2),
            "guided, LoRA fused, channels last": in_channels_last,
            "guided, LoRA fused, deep layers cached": shallow(2),
            "unguided, LoRA fused": step(1),
            "unguided, LoRA fused, deep layers cached": shallow(1),
        },
        repeats,
    )
    return {"settings": "SD1.5's UNet, random weights, rank 128, bf16, 512x512, one image", "ways": timed}


@torch.no_grad()
def compare_with_deepcache(batch_size: int, repeats: int, num_inference_steps: int = 20) -> dict:
    """Our feature cache and DeepCache's, in one loop from the same noise, guided throughout.

    By interval: seconds, ratio to no cache, counted GFLOP an image, and the mean absolute difference of the images (in
    [0, 1]) to those without a cache. `guided_from_step_1`: what DeepCache does where guidance starts at a step
    that it would skip, with twice the batch.
    """
    from DeepCache import DeepCacheSDHelper

    pipe = LbGenPipeline.from_pretrained(LBGEN_TINY)
    pipe.scheduler = build_scheduler("ddim", pipe.scheduler.config)
    prompts = list(CLASSES)[:batch_size]
    embeds, negative = pipe.encode_prompt(prompts, "cpu", 1, True, [""] * batch_size)
    noise = torch.randn(batch_size, 16, 8, 8, generator=torch.Generator().manual_seed(0))

    def sample(unet: Callable, guidance_start: float = 0.0) -> torch.Tensor:
        options = {"num_inference_steps": num_inference_steps, "guidance_start": guidance_start, "frozen_unet": unet}
        latents = sample_latents(pipe.unet, pipe.scheduler, noise, embeds, negative, fuse_lora=False, **options)
        return decode_latents(pipe.vae, latents)

    def with_deepcache(interval: int, guidance_start: float = 0.0) -> torch.Tensor:
        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=interval, cache_branch_id=0)
        helper.enable()
        try:
            return sample(pipe.unet, guidance_start)
        finally:
            helper.disable()

    ways: dict[str, Callable[[], torch.Tensor]] = {"no cache": lambda: sample(pipe.unet)}
    for interval in (2, 3):
        ways[f"lbgen_hf, interval {interval}"] = lambda interval=interval: sample(CachedUNet(pipe.unet, interval))
        ways[f"DeepCache, interval {interval}"] = lambda interval=interval: with_deepcache(interval)
    images = {name: way() for name, way in ways.items()}
    timed = compare(ways, repeats)
    for name, way in ways.items():
        timed[name]["gflop_an_image"] = round(count_gflops(way, batch_size), 2)
        timed[name]["difference"] = round((images[name] - images["no cache"]).abs().mean().item(), 5)
    try:
        with_deepcache(2, guidance_start=1 / num_inference_steps)
        late = "works"
    except RuntimeError as error:
        late = f"fails: {error}"
    return {"steps": num_inference_steps, "batch": batch_size, "ways": timed, "guided_from_step_1": late}


@torch.no_grad()
def judge_all(images_per_class: int, batch_size: int = 80) -> dict:
    """Each variant against `paper`, sampled from the same noise, as the judge sees it.

    Per metric the change with its 95 % interval; `feature_distance`: mean 1 - cos to the `paper` image of the same
    noise in CLIP's space.
    """
    from lbgen_hf.biaslab.measure import compare as compare_measured
    from lbgen_hf.biaslab.measure import judge_images, measure
    from lbgen_hf.evaluation.observers import load_observers

    observers = load_observers()
    sights = {}
    for name in JUDGED:
        settings, sampler = Job(options={"images_per_class": images_per_class, **VARIANTS[name]}).prepare()
        rows = [settings.plan.row(image_id) for image_id in range(settings.plan.num_images)]
        batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        pixels = torch.cat([torch.from_numpy(sampler(batch).pixels) for batch in batches])
        images = pixels.permute(0, 3, 1, 2).float().div(255).unflatten(0, (images_per_class, -1)).transpose(0, 1)
        sights[name] = judge_images(images, settings.classes, **observers)
    paper = sights["paper"]
    measured = {name: measure(sight) for name, sight in sights.items()}
    return {
        name: {
            "feature_distance": (1 - (sight.features * paper.features).sum(-1)).mean().item(),
            "metrics": {
                row["name"]: {"value": row["tuned"], "change": row["change"]}
                for row in compare_measured(measured["paper"], measured[name])
            },
        }
        for name, sight in sights.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quality", action="store_true", help="judge images instead of timing")
    parser.add_argument("--images_per_class", type=int, help="default: 4 for speed, 100 for quality")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sd15", action="store_true", help="time one full-size step instead")
    parser.add_argument("--deepcache", action="store_true", help="compare with the package DeepCache instead")
    arguments = parser.parse_args()
    if arguments.sd15:
        print(write_results("synthesis_sd15", time_sd15_step(arguments.repeats)).read_text())
    elif arguments.deepcache:
        print(write_results("deepcache", compare_with_deepcache(4, arguments.repeats)).read_text())
    elif arguments.quality:
        images_per_class = arguments.images_per_class or 100
        results = {"images_per_class": images_per_class, "variants": judge_all(images_per_class)}
        print(write_results("synthesis_quality", results).read_text())
    else:
        results = time_all(arguments.images_per_class or 4, arguments.repeats)
        print(write_results("synthesis", results).read_text())


if __name__ == "__main__":
    main()
