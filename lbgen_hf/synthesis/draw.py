"""The pictures of a plan's rows, drawn by a pipeline: whole batches that mix classes, each prompt encoded once."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from torch import Tensor

from lbgen_hf.errors import UserError
from lbgen_hf.files import sha256_of
from lbgen_hf.pipeline_lbgen import LORA_FILE, LbGenPipeline
from lbgen_hf.synthesis.denoising import CachedUNet, denoise
from lbgen_hf.synthesis.plan import Row
from lbgen_hf.synthesis.settings import Settings
from lbgen_hf.synthesis.worker import Drawn

SCHEDULERS = {
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
}

# Classes encoded together: always the same ones, so that a prompt's embedding never depends on who asks first.
_ENCODED_TOGETHER = 32
# Decoded together: four pictures of 512x512, whatever the batch is.
_DECODED_PIXELS = 4 * 512 * 512

Scorer = Callable[[Tensor, list[Row]], Tensor]
"""(B, 3, H, W) in [0, 1] and their rows to (B,) numbers."""


class PipelineDrawer:
    """Draws rows as `settings` say.

    Args:
        pipe: loaded, on its device, its adapter fused.
        settings: scheduler, steps, guidance and gates are read from here.
        scorers: per column its scorer, and the least score that is accepted.

    Raises:
        UserError: the scheduler is unknown.
    """

    def __init__(
        self, pipe: LbGenPipeline, settings: Settings, scorers: dict[str, tuple[Scorer, float]] | None = None
    ) -> None:
        self.pipe = pipe
        self.settings = settings
        self.scorers = scorers or {}
        self.pipe.scheduler = build_scheduler(settings.scheduler, pipe.scheduler.config)
        self.unet = CachedUNet(pipe.unet, settings.cache_interval)
        self._embeddings: dict[int, Tensor] = {}
        self._empty = self._encode([""])

    @torch.no_grad()
    def __call__(self, rows: list[Row]) -> Drawn:
        generators = [torch.Generator().manual_seed(row.seed) for row in rows]
        shape = (1, self.pipe.unet.config.in_channels, *self._latent_size())
        noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
        latents = denoise(
            self.pipe,
            self.unet,
            noise.to(self.pipe.device, self.pipe.unet.dtype),
            self._prompt_embeddings([row.class_id for row in rows]),
            self._empty,
            steps=self.settings.steps,
            guidance_scale=self.settings.guidance_scale,
            guidance_interval=self.settings.guidance_interval,
            generators=generators,
        )
        images = self._decode(latents)
        accepted = torch.ones(len(rows), dtype=torch.bool)
        if self.pipe.safety_checker is not None:
            # It blackens what it flags, so it is given a copy.
            flagged = self.pipe.run_safety_checker(images.clone() * 2 - 1, self.pipe.device, self.pipe.unet.dtype)[1]
            accepted &= ~torch.tensor(flagged)
        scores = {}
        for name, (scorer, least) in self.scorers.items():
            values = scorer(images, rows).float().cpu()
            accepted &= values >= least
            scores[name] = values.tolist()
        pictures = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return Drawn(pictures, accepted.tolist(), scores)

    def _latent_size(self) -> tuple[int, int]:
        size = self.pipe.unet.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def _encode(self, prompts: list[str]) -> Tensor:
        return self.pipe.encode_prompt(prompts, self.pipe.device, 1, do_classifier_free_guidance=False)[0]

    def _prompt_embeddings(self, class_ids: list[int]) -> Tensor:
        for class_id in class_ids:
            if class_id not in self._embeddings:
                first = class_id - class_id % _ENCODED_TOGETHER
                names = self.settings.classes[first : first + _ENCODED_TOGETHER]
                self._embeddings |= dict(enumerate(self._encode(list(names)), start=first))
        return torch.stack([self._embeddings[class_id] for class_id in class_ids])

    def _decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        pixels = latents[0, 0].numel() * self.pipe.vae_scale_factor**2
        slices = (latents / vae.config.scaling_factor).split(max(1, _DECODED_PIXELS // pixels))
        decoded = torch.cat([vae.decode(piece, return_dict=False)[0] for piece in slices])
        return (decoded.float() / 2 + 0.5).clamp(0, 1)


def build_scheduler(name: str, config: dict) -> diffusers.SchedulerMixin:
    """A scheduler by its short name or its diffusers class name, with the betas of the pipeline's own.

    Raises:
        UserError: there is no such scheduler.
    """
    class_name, options = SCHEDULERS.get(name, (name, {}))
    scheduler_class = getattr(diffusers, class_name, None)
    if not hasattr(scheduler_class, "set_timesteps"):
        raise UserError(
            f"unknown scheduler {name!r}; choose from {', '.join(SCHEDULERS)} or a diffusers scheduler class"
        )
    return scheduler_class.from_config(config, **options)


def load_pipeline(
    model: str, lora: str | None, device: torch.device, dtype: torch.dtype, compile_unet: bool = False
) -> tuple[LbGenPipeline, dict[str, str]]:
    """Load a pipeline for synthesis: adapter fused, on its device, in its fastest memory format.

    Returns:
        The pipeline, and which weights it has: the settings `model_digest` and, with an adapter, `lora_sha256`.

    Raises:
        UserError: the model or the adapter is missing or does not fit.
    """
    pipe = LbGenPipeline.from_pretrained(model, dtype=dtype)
    weights = {"model_digest": digest_weights(pipe.unet)}
    if lora:
        pipe.load_lora_weights(lora)
        weights["lora_sha256"] = sha256_lora(lora)
    if pipe.get_active_adapters():
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    pipe.to(device)
    if device.type == "cuda":
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if compile_unet:
        pipe.unet.compile()
    return pipe, weights


def digest_weights(module: torch.nn.Module) -> str:
    """Identify a model by a sample of each of its weights: any training changes them all."""
    digest = hashlib.sha256()
    for name, weights in module.state_dict().items():
        flat = weights.detach().flatten()
        sample = flat[:: max(1, len(flat) // 64)].float().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def sha256_lora(lora: str) -> str:
    """SHA-256 of the weights file of an adapter: a file, a folder, or a Hub repo."""
    path = Path(lora)
    if path.is_dir():
        path /= LORA_FILE
    if not path.is_file():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(lora, LORA_FILE))
    return sha256_of(path)
