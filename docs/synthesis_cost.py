"""What 1.3 million images cost, by preset: writes the tables of synthesis.md.

    python docs/synthesis_cost.py

FLOPs are counted by torch on the meta device, at the size of Stable Diffusion 1.5, 512x512; no weights are needed.
Hours follow from the paper's own rate, 0.87 images/s on an A100 with the `paper` preset (52 h on 8 of them), and, for
other GPUs, from the same share of their published peak.
"""

from collections import Counter
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from tables import fill_in, markdown_table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lbgen_hf.sampling import CachedUNet, build_scheduler, sample_latents
from lbgen_hf.synthesis.plan import PRESETS

NUM_IMAGES = 1_300_000
PAPER_IMAGES_PER_SECOND = 0.87
# Dense fp16/bf16 TFLOP/s from the vendors' data sheets; the first is the paper's.
PEAK_TFLOPS = {"A100 SXM": 312, "H100 SXM": 989, "L40S": 362, "L4": 121, "RTX 4090": 165}
# On demand, by the price page of RunPod's Secure Cloud on 2026-11-09. Vendors differ by a factor of four.
DOLLARS_AN_HOUR = {"A100 SXM": 1.79, "H100 SXM": 3.99}
# An estimate for photographs, at quality 95.
KILOBYTES = {"jpeg 512": 80, "jpeg 256": 25, "png 512": 450}
VARIANTS = {
    "paper": PRESETS["paper"],
    "fast, guidance start 0": {**PRESETS["fast"], "guidance_start": 0.0},
    "fast": PRESETS["fast"],
    "fast, cache interval 2": {**PRESETS["fast"], "cache_interval": 2},
    "fast, cache interval 3": {**PRESETS["fast"], "cache_interval": 3},
}


class CallRecorder(CachedUNet):
    """Notes the batch of each call and whether it is whole, and predicts zeros."""

    def __init__(self, interval: int) -> None:
        super().__init__(nn.Identity(), interval)
        self.calls: Counter[tuple[int, bool]] = Counter()

    def __call__(self, sample: Tensor, *_: Tensor, **__: Tensor) -> tuple[Tensor]:
        self.calls[len(sample), self.is_whole(len(sample))] += 1
        return (torch.zeros_like(sample),)


def calls_of(preset: dict) -> Counter[tuple[int, bool]]:
    """How often one image calls the UNet, by batch (2 is guided) and whether all layers run."""
    recorder = CallRecorder(preset.get("cache_interval", 1))
    config = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").config
    names = ("guidance_scale", "guidance_start", "guidance_stop")
    sample_latents(
        recorder.unet,
        build_scheduler(preset["scheduler"], config),
        torch.zeros(1, 4, 64, 64),
        *(torch.zeros(1, 77, 768), torch.zeros(1, 77, 768)),
        num_inference_steps=preset["steps"],
        frozen_unet=recorder,
        **{name: preset[name] for name in names if name in preset},
    )
    return recorder.calls


@torch.no_grad()
def count_call_tflops() -> dict[tuple[int, bool], float]:
    """TFLOPs of a call, by batch and whether all layers run."""
    tflops = {}
    with torch.device("meta"):
        unet = CachedUNet(UNet2DConditionModel(sample_size=64, cross_attention_dim=768), interval=2)
        for batch in (1, 2):
            unet.reset()
            for whole in (True, False):
                with FlopCounterMode(display=False) as counter:
                    unet(torch.empty(batch, 4, 64, 64), torch.empty(()), torch.empty(batch, 77, 768))
                tflops[batch, whole] = counter.get_total_flops() / 1e12
    return tflops


def count_decoder_tflops() -> float:
    """Of one 512x512 image."""
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            vae.decode(torch.empty(1, 4, 64, 64))
    return counter.get_total_flops() / 1e12


def _hours(gpu: str, hours: float) -> str:
    """With their price, where the GPU's rate is known."""
    rate = DOLLARS_AN_HOUR.get(gpu)
    return f"{hours:,.0f} (${hours * rate:,.0f})" if rate else f"{hours:,.0f}"


def main() -> None:
    decoder, call_tflops = count_decoder_tflops(), count_call_tflops()
    tflops = {
        name: decoder + sum(count * call_tflops[kind] for kind, count in calls_of(preset).items())
        for name, preset in VARIANTS.items()
    }
    share = PAPER_IMAGES_PER_SECOND * tflops["paper"] / PEAK_TFLOPS["A100 SXM"]
    hours = {
        name: {gpu: NUM_IMAGES * cost / (peak * share) / 3600 for gpu, peak in PEAK_TFLOPS.items()}
        for name, cost in tflops.items()
    }
    presets = markdown_table(
        ["preset", "TFLOP an image", "by counted FLOPs", *(f"{gpu}, h" for gpu in PEAK_TFLOPS)],
        [
            [name, f"{cost:.1f}", f"{tflops['paper'] / cost:.2f}x", *(_hours(*item) for item in hours[name].items())]
            for name, cost in tflops.items()
        ],
    )
    disk = markdown_table(
        ["stored as", "kB an image, an estimate", "disk"],
        [[name, str(size), f"{NUM_IMAGES * size / 1e6:,.0f} GB"] for name, size in KILOBYTES.items()],
    )
    rates = ", ".join(f"{gpu} ${rate}" for gpu, rate in DOLLARS_AN_HOUR.items())
    intro = (
        f"Share of the peak, from the paper's rate: {100 * share:.0f} %."
        f" Dollars at {rates} an hour (RunPod, 2026-11-09)."
    )
    fill_in(Path(__file__).with_name("synthesis.md"), {"cost": f"{intro}\n\n{presets}\n\n{disk}"})


if __name__ == "__main__":
    main()
