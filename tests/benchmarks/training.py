"""Time and memory of a training step against a plain implementation with equal gradients, lever by lever.

    python tests/benchmarks/training.py            # lbgen-tiny's shapes, a few minutes
    python tests/benchmarks/training.py --sd15     # one step of SD1.5 + ViT-L/14 at 512x512 in bf16, random weights

The plain step does what the authors' published code does: prompts and negative names encoded anew at every step, the
image encoded once for the generator and once for D, the LoRA's two small products computed in every UNet call, every
reward run even at weight zero. `results/training.json` holds what was measured.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from timing import compare, write_results
from torch import Tensor, nn

from lbgen_hf.fine_tuning.alignment import PaperAlignment, TotalLoss
from lbgen_hf.fine_tuning.batches import sample_batch
from lbgen_hf.fine_tuning.config import LbGenConfig
from lbgen_hf.fine_tuning.context_swap import ContextSwapAlignment
from lbgen_hf.fine_tuning.lora import add_lora
from lbgen_hf.rewards.clip_features import ClipFeatures
from lbgen_hf.rewards.losses import (
    discriminator_loss,
    entire_dataset_loss,
    individual_loss,
    quality_loss,
)
from lbgen_hf.sampling import choose_gradient_steps, decode_latents, sample_latents, training_scheduler

CONFIGS = Path(__file__).parents[2] / "training" / "configs"


class Stack:
    """A pipeline, a CLIP and a scorer to train with; the benchmarks differ in how they use them."""

    def __init__(
        self, pipe, clip: ClipFeatures, scorer, class_names: list[str], rank: int, steps: int, batch_size: int
    ):
        self.pipe, self.clip, self.scorer, self.class_names = pipe, clip, scorer, class_names
        self.steps, self.batch_size = steps, batch_size
        self.unet, self.vae = pipe.unet.eval(), pipe.vae.eval().requires_grad_(False)
        self.scheduler = training_scheduler("ddim", pipe.scheduler.config)
        torch.manual_seed(0)
        self.parameters = add_lora(self.unet, rank)
        for parameter in self.parameters:  # both factors non-zero, so that every gradient is
            torch.nn.init.normal_(parameter, std=0.02)
        shape = (self.unet.config.in_channels, *[self.unet.config.sample_size] * 2)
        self.batch = sample_batch(range(batch_size), len(class_names), shape, seed=0)
        self.gradient_steps = choose_gradient_steps(steps, min(5, steps), torch.Generator().manual_seed(0))
        self.alignment = PaperAlignment(clip, class_names, LbGenConfig())
        self.discriminator = self.alignment.discriminator
        self.loss = TotalLoss(clip, self.alignment, quality_weight=0.0)
        swap = LbGenConfig.from_yaml(CONFIGS / "context_swap.yaml")
        self.swap_loss = TotalLoss(clip, ContextSwapAlignment(clip, class_names, swap), quality_weight=0.0)
        bank = nn.functional.normalize(torch.randn(swap.context_bank_size, clip.feature_dim), dim=-1)
        bank_ids = torch.arange(len(bank)) % len(class_names)
        self.swap_loss.alignment.start(bank, bank_ids, batch_size, torch.Generator())
        self.embeds, self.negative = self.encode(class_names), self.encode([""])

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        return self.pipe.encode_prompt(prompts, "cpu", 1, False)[0]

    def ours(self, loss: TotalLoss | None = None, **options) -> None:
        """One step as training/train_lbgen.py does it, by default with the paper's alignment."""
        batch, loss = self.batch, loss or self.loss
        latents = sample_latents(
            self.unet,
            self.scheduler,
            batch.noise,
            self.embeds[batch.class_ids],
            self.negative,
            **{"num_inference_steps": self.steps, "gradient_steps": self.gradient_steps} | options,
        )
        total, _, features = loss(decode_latents(self.vae, latents), batch.class_ids)
        total.backward(inputs=self.parameters)
        loss.alignment.update(features.detach(), batch.class_ids, batch.real_ids, torch.Generator())

    def plain(self) -> None:
        """One step as the authors' code does it, with the paper's loss."""
        batch = self.batch
        names = [self.class_names[i] for i in batch.class_ids]
        embeds = torch.cat([self.encode([""] * self.batch_size), self.encode(names)])
        self.scheduler.set_timesteps(self.steps)
        x = batch.noise
        for index, timestep in enumerate(self.scheduler.timesteps):
            with torch.set_grad_enabled(index in self.gradient_steps):
                noise = self.unet(torch.cat([x] * 2), timestep, encoder_hidden_states=embeds).sample
                without, with_text = noise.chunk(2)
                noise = without + 2.0 * (with_text - without)
            x = self.scheduler.step(noise, timestep, x).prev_sample
        images = decode_latents(self.vae, x)
        features = self.clip.image_features(images)
        own = self.clip.text_features([f"photo of {name}" for name in names])
        terms = [entire_dataset_loss(self.discriminator(features)), individual_loss(features, own)]
        terms.append(0.0 * quality_loss(self.scorer(images)))
        sum(terms).backward(inputs=self.parameters)
        fake = self.clip.image_features(images.detach())
        real = self.clip.text_features([self.class_names[i] for i in batch.real_ids])
        discriminator_loss(self.discriminator(real), self.discriminator(fake)).backward()

    def gradient(self, step: Callable[[], None]) -> Tensor:
        for parameter in self.parameters:
            parameter.grad = None
        step()
        return torch.cat([parameter.grad.flatten() for parameter in self.parameters])


def tiny_stack() -> Stack:
    """lbgen-tiny as shipped; 5 steps of 20 are trained, with guidance, as the paper has 5 of 50."""
    from lbgen_hf.pipeline_lbgen import LbGenPipeline
    from lbgen_hf.rewards.quality import load_quality_scorer

    pipe = LbGenPipeline.from_pretrained("lbgen-tiny")
    clip = ClipFeatures.from_pretrained("lbgen-tiny")
    return Stack(pipe, clip, load_quality_scorer("lbgen-tiny"), pipe.class_labels, rank=16, steps=20, batch_size=24)


def saved_mebibytes(step: Callable[[], None]) -> float:
    """Peak of what autograd keeps for the backward pass, counted tensor by tensor where it is saved and released."""
    kept: dict[int, int] = {}
    current = peak = 0

    class Holder:
        def __init__(self, tensor: Tensor):
            nonlocal current, peak
            self.tensor, self.key = tensor, tensor.untyped_storage().data_ptr()
            if kept.setdefault(self.key, 0) == 0:
                current += tensor.untyped_storage().nbytes()
                peak = max(peak, current)
            kept[self.key] += 1

        def __del__(self):
            nonlocal current
            kept[self.key] -= 1
            if kept[self.key] == 0:
                current -= self.tensor.untyped_storage().nbytes()

    with torch.autograd.graph.saved_tensors_hooks(Holder, lambda holder: holder.tensor):
        step()
    return peak / 2**20


def timed(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, dict]:
    """Time and memory of each step against the first."""
    timings = compare(steps, repeats=repeats)
    for name, step in steps.items():
        timings[name]["saved_mebibytes"] = round(saved_mebibytes(step), 1)
    return timings


def benchmark_tiny(repeats: int) -> dict:
    stack = tiny_stack()
    reference = stack.gradient(stack.plain)
    difference = ((stack.gradient(stack.ours) - reference).norm() / reference.norm()).item()
    assert difference < 1e-3, difference

    def checkpointed() -> None:
        stack.unet.enable_gradient_checkpointing()
        stack.ours()
        stack.unet.disable_gradient_checkpointing()

    compiled = torch.compile(stack.unet)
    last = max(stack.gradient_steps)
    equal_gradients = {
        "plain": stack.plain,
        "ours": stack.ours,
        "ours, LoRA not fused": lambda: stack.ours(fuse_lora=False),
        "ours, steps without gradients compiled": lambda: stack.ours(frozen_unet=compiled),
        "ours, checkpointed": checkpointed,
    }
    other_gradients = {
        "ours, UNet input detached": lambda: stack.ours(detach_unet_input=True),
        "UNet input detached, early exit": lambda: stack.ours(detach_unet_input=True, early_exit=True),
        "UNet input detached, half the steps": lambda: stack.ours(
            detach_unet_input=True, num_inference_steps=10, gradient_steps=[i // 2 for i in stack.gradient_steps]
        ),
        "UNet input detached, guidance in the middle half": lambda: stack.ours(
            detach_unet_input=True, guidance_start=0.25, guidance_stop=0.75
        ),
    }
    return {
        "settings": "lbgen-tiny, batch 24, 20 steps, 5 gradient steps, rank 16",
        "gradient_difference": difference,
        "last_gradient_step": last,
        "steps": timed(equal_gradients | other_gradients, repeats),
        "alignments": timed({"paper": stack.ours, "context_swap": lambda: stack.ours(stack.swap_loss)}, repeats),
    }


def sd15_stack() -> Stack:
    """SD1.5 and ViT-L/14 with random weights in bf16."""
    import open_clip
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.set_default_dtype(torch.bfloat16)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=512,
    )
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    )
    clip = open_clip.create_model("ViT-L-14", force_quick_gelu=True, load_weights=False)
    torch.set_default_dtype(torch.float32)
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    pipe = StableDiffusionPipeline(vae, text, None, unet, scheduler, None, None, requires_safety_checker=False)
    tokenizer = open_clip.get_tokenizer("ViT-L-14")
    pipe.encode_prompt = lambda prompts, *_: (text(tokenizer(prompts)).last_hidden_state, None)
    features = ClipFeatures(clip, tokenizer).to(torch.bfloat16)
    return Stack(pipe, features, None, ["crane", "goldfish", "bow"], rank=128, steps=50, batch_size=1)


def benchmark_sd15(steps: int) -> dict:
    """One training step at 512x512, timed part by part, under 16 GB."""
    stack = sd15_stack()
    stack.unet.enable_gradient_checkpointing()
    stack.vae.enable_gradient_checkpointing()
    stack.clip.model.set_grad_checkpointing(True)
    stack.steps = steps
    gradient_steps = choose_gradient_steps(steps, 5, torch.Generator().manual_seed(0))
    seconds = {}

    def timed(name: str, function: Callable[[], object]) -> object:
        start = time.perf_counter()
        result = function()
        seconds[name] = round(time.perf_counter() - start, 2)
        return result

    batch = stack.batch
    with torch.autocast("cpu", torch.bfloat16):
        latents = timed(
            "sampling",
            lambda: sample_latents(
                stack.unet,
                stack.scheduler,
                batch.noise,
                stack.embeds[batch.class_ids],
                stack.negative,
                num_inference_steps=steps,
                gradient_steps=gradient_steps,
                fuse_lora=False,
            ),
        )
        images = timed("vae", lambda: decode_latents(stack.vae, latents.bfloat16()).float())
    total, _, features = timed("clip", lambda: stack.loss(images, batch.class_ids))
    timed("backward", lambda: total.backward(inputs=stack.parameters))
    shown = features.detach(), batch.class_ids, batch.real_ids, torch.Generator()
    timed("discriminator", lambda: stack.alignment.update(*shown))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    settings = "SD1.5, ViT-L/14, random weights, 512x512, bf16, CPU, batch 1"
    return {
        "settings": f"{settings}, {steps} steps, 5 gradient steps, rank 128",
        "seconds": seconds,
        "seconds_in_all": round(sum(seconds.values()), 2),
        "share": {name: round(value / sum(seconds.values()), 3) for name, value in seconds.items()},
        "peak_gibibytes": round(peak, 2),
        "gradient_norm": torch.cat([p.grad.flatten() for p in stack.parameters]).norm().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sd15", action="store_true")
    parser.add_argument("--sd15_steps", type=int, default=50)
    args = parser.parse_args()
    if args.sd15:
        name, results = "training_sd15", benchmark_sd15(args.sd15_steps)
    else:
        name, results = "training", benchmark_tiny(args.repeats)
    print(write_results(name, results).read_text())


if __name__ == "__main__":
    main()
