"""The one denoising loop: for synthesis, and for training with a graph through K of the N steps.

In training the whole schedule runs from pure noise, as in synthesis (the paper's sec. 4.1, after DRTune and CoMat). At
K gradient steps the UNet's call is part of the graph; at all others it is a constant, and the scheduler's own
arithmetic carries the gradient from the image back to each gradient step.
"""

import contextlib
import difflib
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler, SchedulerMixin, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lbgen_hf.checks import check_finite, check_number
from lbgen_hf.errors import UserError, first_line
from lbgen_hf.pipeline_lbgen import guided_steps

TRAINING_SCHEDULERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}
# A config written by PNDM has no `clip_sample`, and the default of DDIM and DDPM clips latents to [-1, 1].
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
}

_IRREPRODUCIBLE = ("DPMSolverSDEScheduler",)  # they take no generator
_NO_PNDM = (
    "PNDM mixes the noise predictions of earlier steps into every step, so a gradient step would also reach the image"
    " through its neighbours and K gradient steps would not be K; train with ddim (default) or ddpm, and sample with"
    " PNDM"
)


def build_scheduler(name: str, config: dict) -> SchedulerMixin:
    """A scheduler on the noise schedule that the model was made for.

    Args:
        name: a short name of `SCHEDULERS`, or the class of a diffusers scheduler that Stable Diffusion runs with.
        config: the config of the pipeline's own scheduler.

    Raises:
        UserError: there is no such scheduler, a package that it needs is missing, or it takes no generator.
    """
    classes = [scheduler.name for scheduler in KarrasDiffusionSchedulers]
    class_name, options = SCHEDULERS.get(name, (name, {}))
    if class_name not in classes:
        close = difflib.get_close_matches(name, [*SCHEDULERS, *classes], n=2)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"choose from {', '.join(SCHEDULERS)}"
        raise UserError(f"unknown scheduler {name!r}: {hint}")
    if class_name in _IRREPRODUCIBLE:
        raise UserError(f"the scheduler {name!r} adds noise that an image's seed does not decide; choose another")
    try:
        return getattr(diffusers, class_name).from_config(config, **options)
    except ImportError as error:
        raise UserError(f"the scheduler {name!r} needs a package: {first_line(error)}") from error


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
    return TRAINING_SCHEDULERS[name].from_config(config, clip_sample=False)


def choose_gradient_steps(num_inference_steps: int, num_gradient_steps: int, generator: torch.Generator) -> list[int]:
    """K equally spaced steps of N with a random offset; for 5 of 50, `range(start, 50, 10)` with start in 0..9.

    Raises:
        UserError: not 1 <= K <= N.
    """
    if not 1 <= num_gradient_steps <= num_inference_steps:
        raise UserError(
            f"the number of gradient steps must be between 1 and the {num_inference_steps} sampling steps,"
            f" got {num_gradient_steps}"
        )
    stride = num_inference_steps // num_gradient_steps
    slack = num_inference_steps - stride * (num_gradient_steps - 1)
    start = int(torch.randint(slack, (), generator=generator, device=generator.device))
    return [start + stride * i for i in range(num_gradient_steps)]


class FusedLora:
    """The UNet's weights with its LoRA added in, to swap in for calls that need no gradient.

    Entering swaps pointers, leaving swaps the originals back: nothing is added to and taken from a weight, so nothing
    drifts. Made once a trajectory, after the last optimizer step. Without a LoRA it does nothing.
    """

    @torch.no_grad()
    def __init__(self, unet: nn.Module) -> None:
        self._layers: list[Any] = [
            m for m in unet.modules() if isinstance(m, BaseTunerLayer) and not m.disable_adapters
        ]
        self._weights = []
        for layer in self._layers:
            weight = layer.get_base_layer().weight
            delta: Any = sum(layer.get_delta_weight(name) for name in layer.active_adapters)
            self._weights.append((weight, weight.data, weight.data + delta.to(weight.dtype)))

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


class CachedUNet:
    """A UNet of which all but the last layer runs at every `interval`-th call, and lends its features in between.

    As in DeepCache (arXiv 2312.00858), cut at the outermost skip connection. A shallow call runs the last layer of the
    last up block alone, between the UNet's entry and exit. `sample_latents` resets it before each batch.

    Args:
        unet: Stable Diffusion's.
        interval: 1 calls the UNet itself.
        compile: with `torch.compile`: the whole UNet, or with a cache what is cached and what is not.
    """

    def __init__(self, unet: UNet2DConditionModel, interval: int, compile: bool = False) -> None:
        self.unet: Any = unet
        self.interval = interval
        wrap = torch.compile if compile else lambda function: function
        self._run_unet = wrap(unet)
        self._run_entry, self._run_deep, self._run_last = wrap(self._entry), wrap(self._deep), wrap(self._last)
        self.reset()

    def reset(self) -> None:
        """Forget the features of the last batch."""
        self._calls_since_whole = 0
        self._deep_batch = 0
        self._features: Tensor | None = None

    def is_whole(self, batch: int) -> bool:
        """Whether the next call, of `batch` samples, runs all layers; counts that call."""
        self._calls_since_whole += 1
        whole = self._deep_batch < batch or self._calls_since_whole == self.interval
        if whole:
            self._calls_since_whole, self._deep_batch = 0, batch
        return whole

    def __call__(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """Predict as the UNet does.

        Args:
            sample: (B, C, H, W), B either the batch or, guided, twice the batch with the unconditional half first.
            timestep: scalar.
            encoder_hidden_states: (B, L, D).
            return_dict: always False.
        """
        if self.interval == 1:
            return self._run_unet(sample, timestep, encoder_hidden_states=encoder_hidden_states, return_dict=False)
        entry, time = self._run_entry(sample, timestep)
        if self.is_whole(len(sample)) or self._features is None:
            self._features = self._run_deep(entry, time, encoder_hidden_states)
        return (self._run_last(self._features[-len(sample) :], entry, time, encoder_hidden_states),)

    def _entry(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        unet = self.unet
        return unet.conv_in(sample), unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep))

    def _deep(self, entry: Tensor, time: Tensor, embeddings: Tensor) -> Tensor:
        hidden, skips = entry, (entry,)
        for block in self.unet.down_blocks:
            hidden, more = _run(block, hidden, time, embeddings)
            skips += more
        hidden = self.unet.mid_block(hidden, time, encoder_hidden_states=embeddings)
        for block in self.unet.up_blocks[:-1]:
            used, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            hidden = _run(block, hidden, time, embeddings, used, upsample_size=skips[-1].shape[2:])
        for layer, skip in enumerate(reversed(skips[1:])):
            hidden = self._run_layer(layer, hidden, skip, time, embeddings)
        return hidden

    def _last(self, hidden: Tensor, entry: Tensor, time: Tensor, embeddings: Tensor) -> Tensor:
        unet = self.unet
        hidden = self._run_layer(-1, hidden, entry, time, embeddings)
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))

    def _run_layer(self, layer: int, hidden: Tensor, skip: Tensor, time: Tensor, embeddings: Tensor) -> Tensor:
        """One layer of the last up block, as the block's own forward calls it."""
        block = self.unet.up_blocks[-1]
        hidden = block.resnets[layer](torch.cat([hidden, skip], dim=1), time)
        if getattr(block, "has_cross_attention", False):
            hidden = block.attentions[layer](hidden, encoder_hidden_states=embeddings, return_dict=False)[0]
        return hidden


def _run(block: Any, hidden: Tensor, time: Tensor, embeddings: Tensor, skips: tuple | None = None, **options):
    """Call a block of either kind, with cross-attention or without, of the way down or of the way up."""
    if getattr(block, "has_cross_attention", False):
        options["encoder_hidden_states"] = embeddings
    if skips is not None:
        options["res_hidden_states_tuple"] = skips
    return block(hidden, temb=time, **options)


@contextlib.contextmanager
def _constant(fused: FusedLora | None) -> Iterator[None]:
    with torch.no_grad(), fused or contextlib.nullcontext():
        yield


def sample_latents(
    unet: nn.Module,
    scheduler: Any,
    latents: Tensor,
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor | None = None,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float = 2.0,
    guidance_start: float = 0.0,
    guidance_stop: float = 1.0,
    gradient_steps: Collection[int] = (),
    detach_unet_input: bool = False,
    early_exit: bool = False,
    fuse_lora: bool = True,
    frozen_unet: Callable[..., tuple] | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Denoise latents through the full schedule, with a graph through the UNet at the gradient steps alone.

    Without gradient steps the result is `StableDiffusionPipeline`'s, whose loop this is.

    Args:
        unet: called as `unet(x, t, encoder_hidden_states=..., return_dict=False)[0]`.
        scheduler: of diffusers; with gradient steps, one whose `step` is differentiable and uses the present prediction
            alone, see `training_scheduler`.
        latents: (B, C, h, w) standard normal noise.
        prompt_embeds: (B, L, D).
        negative_prompt_embeds: (B, L, D) or (1, L, D), for classifier-free guidance; None runs without guidance.
        num_inference_steps: N.
        guidance_scale: as in diffusers; there is no guidance at 1 and below.
        guidance_start, guidance_stop: guidance acts between these fractions of the sampling steps, see `guided_steps`;
            the other steps skip the unconditional half, and cost half as much (arXiv 2404.07724).
        gradient_steps: indices in 0..N-1 of the steps with gradients; none gives plain sampling.
        detach_unet_input: cut the gradient at a gradient step's UNet input, so that each step is reached through the
            scheduler's chain only (DRTune); otherwise it is a back-propagation through K UNet calls (CoMat).
        early_exit: return the clean latents as the last gradient step predicts them, and skip the steps after it.
        fuse_lora: run the steps without gradients on weights with the LoRA added in: the same function, faster.
        frozen_unet: what the steps without gradients call for `unet`: `torch.compile(unet)`, or a `CachedUNet`.
        generator: one for all, or one an image, for schedulers that add noise at each step.

    Returns:
        (B, C, h, w) clean latents, still scaled as the UNet sees them.

    Raises:
        UserError: PNDM with gradient steps, steps outside the schedule, numbers out of range, or latents that are not
            finite at the end.
    """
    if gradient_steps and isinstance(scheduler, PNDMScheduler):
        raise UserError(_NO_PNDM)
    check_number("guidance_scale", guidance_scale)
    longest = scheduler.config.num_train_timesteps
    check_number("num_inference_steps", num_inference_steps, at_least=1, at_most=longest, integer=True)
    for step in gradient_steps:
        check_number("a gradient step", step, at_least=0, below=num_inference_steps, integer=True)

    scheduler.set_timesteps(num_inference_steps, device=latents.device)
    guided, both_embeds = [], prompt_embeds
    if negative_prompt_embeds is not None and guidance_scale > 1:
        guided = guided_steps(len(scheduler.timesteps), guidance_start, guidance_stop)
        both_embeds = torch.cat([negative_prompt_embeds.expand_as(prompt_embeds), prompt_embeds])
    adds_noise = "generator" in inspect.signature(scheduler.step).parameters
    step_kwargs = {"generator": generator} if adds_noise else {}
    fused = FusedLora(unet) if fuse_lora else None
    if isinstance(frozen_unet, CachedUNet):
        frozen_unet.reset()
    last_gradient_step = max(gradient_steps, default=None)

    x = latents * scheduler.init_noise_sigma
    for index, timestep in enumerate(scheduler.timesteps):
        has_gradient = index in gradient_steps
        denoise = unet if has_gradient or frozen_unet is None else frozen_unet
        with contextlib.nullcontext() if has_gradient else _constant(fused):
            x_in = scheduler.scale_model_input(x.detach() if detach_unet_input else x, timestep)
            x_in, embeds = (torch.cat([x_in] * 2), both_embeds) if index in guided else (x_in, prompt_embeds)
            noise = denoise(x_in, timestep, encoder_hidden_states=embeds, return_dict=False)[0]
            if index in guided:
                unconditional, conditional = noise.chunk(2)
                noise = unconditional + guidance_scale * (conditional - unconditional)
        step = scheduler.step(noise, timestep, x, **step_kwargs)
        if early_exit and index == last_gradient_step:
            x = step.pred_original_sample
            break
        x = step.prev_sample
    check_finite("the latents that the model samples (its weights, its dtype or the guidance is at fault)", x)
    return x


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) to images (B, 3, H, W) in about [0, 1], not clamped: every pixel keeps its gradient."""
    return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0] / 2 + 0.5
