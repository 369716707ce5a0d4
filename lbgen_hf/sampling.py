"""Images with a graph through K of the N denoising steps: the paper's sec. 4.1, after DRTune and CoMat.

The whole schedule runs from pure noise, as in synthesis. At K steps the UNet's call is part of the graph; at all others
it is a constant, and the scheduler's own arithmetic carries the gradient from the image back to each trained step.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal

import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lbgen_hf.errors import UserError

UnetInput = Literal["stop", "through"]
TRAINING_SCHEDULERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}

_NO_PNDM = (
    "PNDM mixes the noise predictions of earlier steps into every step, so a trained step would also reach the image"
    " through its neighbours and K trained steps would not be K; train with ddim (default) or ddpm, and draw with PNDM"
)


def training_scheduler(name: str, config: dict) -> DDIMScheduler | DDPMScheduler:
    """The scheduler to train with, on the noise schedule that the model was made for.

    Args:
        name: "ddim" or "ddpm".
        config: the config of the pipeline's own scheduler.

    Raises:
        UserError: another scheduler; PNDM with the reason.
    """
    if name == "pndm":
        raise UserError(_NO_PNDM)
    if name not in TRAINING_SCHEDULERS:
        raise UserError(f"unknown training scheduler {name!r}; choose from {', '.join(TRAINING_SCHEDULERS)}")
    # A config written by PNDM has no `clip_sample`, and the default of the others clips latents to [-1, 1].
    return TRAINING_SCHEDULERS[name].from_config(config, clip_sample=False)


def choose_trained_steps(num_inference_steps: int, num_trained_steps: int, generator: torch.Generator) -> list[int]:
    """K equally spaced steps of N with a random offset; for 5 of 50, `range(start, 50, 10)` with start in 0..9.

    Raises:
        UserError: not 1 <= K <= N.
    """
    if not 1 <= num_trained_steps <= num_inference_steps:
        raise UserError(
            f"the number of trained steps must be between 1 and the {num_inference_steps} sampling steps,"
            f" got {num_trained_steps}"
        )
    stride = num_inference_steps // num_trained_steps
    slack = num_inference_steps - stride * (num_trained_steps - 1)
    start = int(torch.randint(slack, (), generator=generator, device=generator.device))
    return [start + stride * i for i in range(num_trained_steps)]


class FusedLora:
    """The UNet's weights with its LoRA added in, to swap in for calls that need no gradient.

    Entering swaps pointers, leaving swaps the originals back: nothing is added to and taken from a weight, so nothing
    drifts. Made once a trajectory, after the last optimizer step. Without a LoRA it does nothing.
    """

    @torch.no_grad()
    def __init__(self, unet: nn.Module):
        self._layers = [m for m in unet.modules() if isinstance(m, BaseTunerLayer) and not m.disable_adapters]
        self._weights = []
        for layer in self._layers:
            weight = layer.get_base_layer().weight
            deltas = [layer.get_delta_weight(name) for name in layer.active_adapters]
            self._weights.append((weight, weight.data, weight.data + sum(deltas).to(weight.dtype)))

    def __enter__(self) -> None:
        for layer in self._layers:
            layer._disable_adapters = True
        for parameter, _, fused in self._weights:
            parameter.data = fused

    def __exit__(self, *_) -> None:
        for layer in self._layers:
            layer._disable_adapters = False
        for parameter, original, _ in self._weights:
            parameter.data = original


@contextlib.contextmanager
def _constant(fused: FusedLora | None) -> Iterator[None]:
    with torch.no_grad(), fused or contextlib.nullcontext():
        yield


def sample_latents(
    unet: nn.Module,
    scheduler,
    latents: Tensor,
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor | None = None,
    *,
    num_inference_steps: int = 50,
    trained_steps: Collection[int] = (),
    guidance_scale: float | Sequence[float] = 2.0,
    unet_input: UnetInput = "through",
    early_exit: bool = False,
    fuse_lora: bool = True,
    frozen_unet: Callable | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Denoise latents through the full schedule, with a graph through the UNet at the trained steps alone.

    Args:
        unet: called as `unet(x, t, encoder_hidden_states=..., return_dict=False)[0]`.
        scheduler: any diffusers scheduler whose `step` is differentiable and uses the present prediction alone.
        latents: (B, C, h, w) standard normal noise.
        prompt_embeds: (B, L, D).
        negative_prompt_embeds: (B, L, D) for classifier-free guidance; None runs without guidance.
        num_inference_steps: N.
        trained_steps: indices in 0..N-1 of the steps with gradients; none gives plain sampling.
        guidance_scale: one number, or one a step; a step with scale 1 skips the unconditional half.
        unet_input: "stop" cuts the gradient at a trained step's UNet input, so that each step is reached through the
            scheduler's chain only (DRTune); "through" lets it pass, a back-propagation through K UNet calls (CoMat).
        early_exit: return the clean latents as the last trained step predicts them, and skip the steps after it.
        fuse_lora: run the steps without gradients on weights with the LoRA added in: the same function, faster.
        frozen_unet: what the steps without gradients call for `unet`, such as `torch.compile(unet)`.
        generator: draws the noise that DDPM adds at each step.

    Returns:
        (B, C, h, w) clean latents, still scaled as the UNet sees them.

    Raises:
        UserError: PNDM, or a trained step outside the schedule.
    """
    if isinstance(scheduler, PNDMScheduler):
        raise UserError(_NO_PNDM)
    outside = [i for i in trained_steps if not 0 <= i < num_inference_steps]
    if outside:
        raise UserError(f"trained step {outside[0]} is not one of the {num_inference_steps} sampling steps")
    scheduler.set_timesteps(num_inference_steps, device=latents.device)
    scales = guidance_scale if isinstance(guidance_scale, Sequence) else [guidance_scale] * num_inference_steps
    both_embeds = None if negative_prompt_embeds is None else torch.cat([negative_prompt_embeds, prompt_embeds])
    step_kwargs = {} if isinstance(scheduler, DDIMScheduler) else {"generator": generator}  # DDIM's eta is 0
    fused = FusedLora(unet) if fuse_lora else None
    last_trained = max(trained_steps, default=None)

    x = latents * scheduler.init_noise_sigma
    for index, timestep in enumerate(scheduler.timesteps):
        trained = index in trained_steps
        denoise = unet if trained or frozen_unet is None else frozen_unet
        with contextlib.nullcontext() if trained else _constant(fused):
            x_in = scheduler.scale_model_input(x if unet_input == "through" else x.detach(), timestep)
            guided = both_embeds is not None and scales[index] != 1
            x_in, embeds = (torch.cat([x_in] * 2), both_embeds) if guided else (x_in, prompt_embeds)
            noise = denoise(x_in, timestep, encoder_hidden_states=embeds, return_dict=False)[0]
            if guided:
                unconditional, conditional = noise.chunk(2)
                noise = unconditional + scales[index] * (conditional - unconditional)
        step = scheduler.step(noise, timestep, x, **step_kwargs)
        if early_exit and index == last_trained:
            return step.pred_original_sample
        x = step.prev_sample
    return x


def decode_latents(vae: nn.Module, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) to images (B, 3, H, W) in about [0, 1], not clamped: every pixel keeps its gradient."""
    return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0] / 2 + 0.5
