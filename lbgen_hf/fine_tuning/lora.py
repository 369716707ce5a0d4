"""The LoRA: put on a UNet, averaged over steps, saved for any diffusers."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict

from lbgen_hf.files import write_into

ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def add_lora(unet: UNet2DConditionModel, rank: int, alpha: float | None = None) -> list[torch.nn.Parameter]:
    """Put a fresh float32 LoRA on a frozen UNet's attention projections, and return its parameters.

    Args:
        alpha: default `rank`, a scale of 1.
    """
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=rank if alpha is None else alpha,  # pyright: ignore[reportArgumentType]  a float works too
            init_lora_weights="gaussian",
            target_modules=list(ATTENTION_PROJECTIONS),
        )
    )
    parameters = [p for p in unet.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


def save_lora(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors` with its metadata (rank, alpha, targets), for any diffusers."""
    layers = {name: value.detach().contiguous() for name, value in get_peft_model_state_dict(unet).items()}
    config = unet.peft_config["default"].to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    layers = convert_state_dict_to_diffusers(layers)
    write_into(
        folder,
        lambda temporary: StableDiffusionPipeline.save_lora_weights(
            temporary, unet_lora_layers=layers, unet_lora_adapter_metadata=config
        ),
    )


@contextlib.contextmanager
def averaged(average: EMAModel | None, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Within it the parameters have their averaged values, afterwards their own again, bit by bit."""
    if average is None:
        yield
        return
    average.store(parameters)
    average.copy_to(parameters)
    try:
        yield
    finally:
        average.restore(parameters)
