"""LbGenPipeline at the full size of Stable Diffusion 1.5, with random weights in bfloat16."""

import dataclasses
import multiprocessing
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from tiny import make_tokenizer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from lbgen_hf.pipeline_lbgen import LORA_FILE, LbGenPipeline

RANK = 128


@dataclasses.dataclass
class Run:
    """What the process of its own reports: parameters of the UNet, latents without and with the LoRA, the image."""

    unet_parameters: int
    plain: np.ndarray
    adapted: np.ndarray
    image: np.ndarray
    peak_gigabytes: float


def make_sd15() -> LbGenPipeline:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)  # never in float32, not even while they are made
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    text_config = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
    )
    text_encoder = CLIPTextModel(text_config)
    torch.set_default_dtype(torch.float32)
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    pipe = LbGenPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=make_tokenizer(77),
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_rank_128_lora(unet: UNet2DConditionModel, folder: Path) -> None:
    layers = {}
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            down = torch.randn(RANK, module.in_features) / module.in_features**0.5
            up = torch.randn(module.out_features, RANK) / RANK**0.5
            layers[f"unet.{name}.lora_A.weight"] = down.bfloat16()
            layers[f"unet.{name}.lora_B.weight"] = up.bfloat16()
    save_file(layers, folder / LORA_FILE)


def run(folder: Path) -> Run:
    pipe = make_sd15()
    save_rank_128_lora(pipe.unet, folder)
    plain = pipe("goldfish", seed=0, num_inference_steps=2, output_type="latent").images
    pipe.load_lora_weights(folder)
    adapted = []

    def keep(pipeline, step, timestep, tensors):
        adapted.append(tensors["latents"])
        return tensors

    image = pipe("goldfish", seed=0, num_inference_steps=2, output_type="pt", callback_on_step_end=keep).images
    parameters = sum(p.numel() for name, p in pipe.unet.named_parameters() if "lora" not in name)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Run(parameters, *(x.float().numpy() for x in (plain, adapted[-1], image)), peak)


@pytest.mark.slow
def test_sd15_runs_with_a_rank_128_lora_in_8_gigabytes(tmp_path):
    """In a process of its own, whose peak memory is that of this test alone."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        done = pool.apply(run, (tmp_path,))
    assert 859e6 < done.unet_parameters < 860e6
    assert done.plain.shape == done.adapted.shape == (1, 4, 64, 64)
    assert done.image.shape == (1, 3, 512, 512)
    assert np.isfinite(done.image).all()
    assert np.abs(done.adapted - done.plain).max() > 1e-2
    assert done.peak_gigabytes < 8
