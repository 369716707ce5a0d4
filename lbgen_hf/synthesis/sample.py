"""The images of a plan's rows, sampled from a pipeline: whole batches that mix classes, each prompt encoded once."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lbgen_hf.checks import check_finite
from lbgen_hf.class_names import ClassNames, load_class_names
from lbgen_hf.devices import DTYPES, pick_device
from lbgen_hf.errors import UserError, first_line
from lbgen_hf.files import sha256_of
from lbgen_hf.hub import loading
from lbgen_hf.pipeline_lbgen import (
    LORA_FILE,
    LbGenPipeline,
    base_model_of,
    base_of,
    find_file,
    find_lora,
    is_lora,
    saved_classes,
    warn_of_same_tokens,
)
from lbgen_hf.sampling import CachedUNet, build_scheduler, sample_latents
from lbgen_hf.shipped import LBGEN_TINY, Companions, companions_of, resolve
from lbgen_hf.synthesis.plan import Row, Settings

# Classes encoded together: always the same ones, so that a prompt's embedding never depends on who asks first.
_ENCODED_TOGETHER = 32
# Decoded together: four images of 512x512, whatever the batch is.
_DECODED_PIXELS = 4 * 512 * 512
# An image that is nowhere brighter than this, of 255, is black, and resampled; `verify` is laxer, for JPEG changes it.
_BLACK = 16
# The parts of a pipeline whose weights decide its images.
_MODULES = ("text_encoder", "unet", "vae")

Scorer = Callable[[Tensor, list[Row]], Tensor]
"""(B, 3, H, W) in [0, 1] and their rows to (B,) numbers."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """A batch of images.

    Attributes:
        pixels: (B, H, W, 3) uint8.
        accepted: per image, whether it may be stored; the others are resampled with their next seed.
        scores: per column (`clip_score`, `quality`) a number an image.
    """

    pixels: np.ndarray
    accepted: list[bool]
    scores: dict[str, list[float]] = dataclasses.field(default_factory=dict)


class Sampler(Protocol):
    """Samples the images of some rows. Equal rows give equal images, whatever else is in the batch."""

    def __call__(self, rows: list[Row]) -> Samples: ...


class PipelineSampler:
    """Samples rows as `settings` say.

    Args:
        pipe: loaded, on its device, its adapter fused.
        settings: scheduler, steps, guidance and thresholds are read from here.
        scorers: per column its scorer, and the least score that is accepted.
        compile_unet: with `torch.compile`.

    Raises:
        UserError: the scheduler is unknown, or does not have so many steps.
    """

    def __init__(
        self,
        pipe: LbGenPipeline,
        settings: Settings,
        scorers: dict[str, tuple[Scorer, float]] | None = None,
        compile_unet: bool = False,
    ) -> None:
        self.pipe = pipe
        self.settings = settings
        self.scorers = scorers or {}
        self.pipe.scheduler = build_scheduler(settings.scheduler, pipe.scheduler.config)
        self.unet = CachedUNet(pipe.unet, settings.cache_interval, compile_unet)
        self._embeddings: dict[int, Tensor] = {}
        self._empty = self._encode([""])

    @torch.no_grad()
    def __call__(self, rows: list[Row]) -> Samples:
        """Sample a batch.

        Raises:
            UserError: the model gives values that are not finite.
        """
        generators = [torch.Generator().manual_seed(row.seed) for row in rows]
        shape = (1, self.pipe.unet.config.in_channels, *self._latent_size())
        noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
        latents = sample_latents(
            self.pipe.unet,
            self.pipe.scheduler,
            noise.to(self.pipe.device, self.pipe.unet.dtype),
            self._prompt_embeddings([row.class_id for row in rows]),
            self._empty,
            num_inference_steps=self.settings.steps,
            guidance_scale=self.settings.guidance_scale,
            guidance_start=self.settings.guidance_start,
            guidance_stop=self.settings.guidance_stop,
            frozen_unet=self.unet,
            generator=generators,
        )
        images = self._decode(latents)
        check_finite(f"the images that {self.settings.model} samples in {self.settings.dtype}", images)
        pixels = (images * 255).round().to(torch.uint8)
        accepted = pixels.flatten(1).amax(1).cpu() >= _BLACK
        if self.pipe.safety_checker is not None:
            # It blackens what it flags, so it is given a copy.
            flagged = self.pipe.run_safety_checker(images.clone() * 2 - 1, self.pipe.device, self.pipe.unet.dtype)[1]
            accepted &= ~torch.tensor(flagged)
        scores = {}
        for name, (scorer, least) in self.scorers.items():
            values = scorer(images, rows).float().cpu()
            check_finite(f"the {name} of the images that {self.settings.model} samples", values)
            accepted &= values >= least
            scores[name] = values.tolist()
        return Samples(pixels.permute(0, 2, 3, 1).cpu().numpy(), accepted.tolist(), scores)

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


@dataclasses.dataclass(frozen=True)
class Job:
    """What to generate, and on what. Small and picklable, so that any process can prepare it for itself.

    Attributes:
        model: "lbgen-tiny", a folder, or a Hub id.
        lora: an adapter to put on it.
        revision, variant: of the model's files, as in diffusers.
        classes: a class list, as `load_class_names` takes it; default: the model's own.
        device: default: the fastest there is.
        dtype: float32, float16 or bfloat16; default: float16 on CUDA, else float32.
        compile_unet: with `torch.compile`.
        scorer: of the quality threshold, as `load_quality_scorer` takes it; default: lbgen-tiny's own for lbgen-tiny
            and its LoRAs, else the paper's.
        options: further fields of `Settings`.
    """

    model: str = LBGEN_TINY
    lora: str | None = None
    revision: str | None = None
    variant: str | None = None
    classes: str | None = None
    device: str | None = None
    dtype: str | None = None
    compile_unet: bool = False
    scorer: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def resolve(self) -> Settings:
        """The settings, from names, files' digests and this machine's device; no weights are loaded.

        Raises:
            UserError: the model, the adapter, the class list, or an option is missing or wrong.
        """
        from lbgen_hf.rewards.quality import check_scorer

        names = load_class_names(self.classes) if self.classes is not None else None
        device = pick_device(self.device)
        dtype = ("float16" if device.type == "cuda" else "float32") if self.dtype is None else self.dtype
        if dtype not in DTYPES:
            raise UserError(f"unknown dtype {dtype!r}; choose from {', '.join(DTYPES)}")
        if dtype == "float16" and device.type == "cpu":
            raise UserError("float16 is too slow and imprecise on a CPU; give --dtype float32 or bfloat16")
        thresholds = {}
        if self.options.get("min_clip_score") is not None:
            thresholds["clip_model"] = self._companions.clip_model
        if self.options.get("min_quality") is not None:
            scorer = self._companions.quality_scorer if self.scorer is None else self.scorer
            check_scorer(scorer)  # before it is loaded
            thresholds["quality_scorer"] = scorer
        elif self.scorer is not None:
            raise UserError("--scorer is for the threshold --min-quality; give both")
        settings_of = functools.partial(
            Settings,
            model=self.model,
            lora=self.lora,
            revision=self.revision,
            variant=self.variant,
            dtype=dtype,
            **thresholds,
            **self.options,
        )
        # Wrong options are refused before many gigabytes are downloaded and hashed.
        build_scheduler(settings_of(model_digest="", classes=names.names if names else ("",)).scheduler, {})
        weights, model_names = inspect_model(self.model, self.lora, self.revision, self.variant)
        names = names or model_names
        wnids = tuple(wnid for wnid in names.wnids if wnid)
        return settings_of(classes=names.names, wnids=wnids if len(wnids) == len(names.names) else None, **weights)

    @functools.cached_property  # which may ask the Hub
    def _companions(self) -> Companions:
        """Those of the base model, where the model is a LoRA."""
        return companions_of(base_of(self.model, self.revision))

    def prepare(self) -> tuple[Settings, PipelineSampler]:
        """`resolve`, then `load_sampler`."""
        settings = self.resolve()
        return settings, self.load_sampler(settings)

    def load_sampler(self, settings: Settings) -> PipelineSampler:
        """Load the weights for the settings that `resolve` gave, here or on another machine of the same job.

        Raises:
            UserError: as `load_sampler`.
        """
        return load_sampler(settings, self.device, compile_unet=self.compile_unet)


def load_sampler(
    settings: Settings, device: str | None = None, *, compile_unet: bool = False, thresholds: bool = True
) -> PipelineSampler:
    """Load what generates a dataset of these settings.

    Args:
        settings: of the dataset.
        device: default: the fastest there is.
        compile_unet: with `torch.compile`.
        thresholds: False to accept every image, without loading the scorers.

    Raises:
        UserError: the model or the adapter is missing or has other weights than the settings say; an unknown scheduler.
    """
    build_scheduler(settings.scheduler, {})
    weights, _ = inspect_model(settings.model, settings.lora, settings.revision, settings.variant)
    if differences := settings.differences(dataclasses.replace(settings, **weights)):
        raise UserError(f"the weights are not those of the plan: {'; '.join(differences)}")
    place = pick_device(device)
    pipe = _load_pipeline(settings, place)
    if pipe.class_labels != list(settings.classes):  # of its own it has warned already
        warn_of_same_tokens(pipe.tokenizer, settings.classes)
    return PipelineSampler(pipe, settings, _load_scorers(settings, place) if thresholds else None, compile_unet)


def _load_pipeline(settings: Settings, device: torch.device) -> LbGenPipeline:
    """A pipeline for synthesis: adapters fused, on its device, in its fastest memory format."""
    hub = {"revision": settings.revision, "variant": settings.variant}
    hub = {name: value for name, value in hub.items() if value is not None}
    pipe = LbGenPipeline.from_pretrained(settings.model, dtype=DTYPES[settings.dtype], **hub)
    _fuse(pipe)  # a model may itself be a LoRA: the next one would take its place
    if settings.lora:
        pipe.load_lora_weights(settings.lora)
        _fuse(pipe)
    pipe.to(device)
    if device.type == "cuda":
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    return pipe


def _fuse(pipe: LbGenPipeline) -> None:
    """Add the adapters to the weights."""
    if pipe.get_active_adapters():
        pipe.fuse_lora()
        pipe.unload_lora_weights()


def _load_scorers(settings: Settings, device: torch.device) -> dict[str, tuple[Scorer, float]]:
    """The scorers of the thresholds that the settings have."""
    scorers: dict[str, tuple[Scorer, float]] = {}
    if settings.min_clip_score is not None:
        scorers["clip_score"] = (_clip_scorer(settings, device), settings.min_clip_score)
    if settings.min_quality is not None:
        from lbgen_hf.rewards.quality import load_quality_scorer

        score = load_quality_scorer(str(settings.quality_scorer), device=device)
        scorers["quality"] = (lambda images, rows: score(images), settings.min_quality)
    return scorers


def _clip_scorer(settings: Settings, device: torch.device) -> Scorer:
    """cos(image, "photo of c"), 1 - L_in of the paper's eq. 6."""
    from lbgen_hf.rewards.clip_features import ClipFeatures

    clip = ClipFeatures.from_pretrained(str(settings.clip_model), device=device)

    def score(images: Tensor, rows: list[Row]) -> Tensor:
        texts = clip.text_features([f"photo of {settings.classes[row.class_id]}" for row in rows])
        return (clip.image_features(images) * texts).sum(-1)

    return score


def inspect_model(
    model: str, lora: str | None = None, revision: str | None = None, variant: str | None = None
) -> tuple[dict[str, str], ClassNames]:
    """Which weights a model has, and which classes, by its files alone; those of the Hub are downloaded.

    Returns:
        The settings `model_digest` and, with an adapter, `lora_sha256`; the class names.

    Raises:
        UserError: the model or the adapter is missing, or has no safetensors weights.
    """
    folder, adapters = _locate(model, revision, variant)
    files = [file for module in _MODULES for file in _weight_files(folder / module, variant)]
    weights = {"model_digest": _digest([*files, *adapters])}
    if lora is not None:
        weights["lora_sha256"] = _digest([_lora_file(lora)])
    return weights, _own_classes(folder)


def _locate(model: str, revision: str | None, variant: str | None) -> tuple[Path, list[Path]]:
    """The folder of a pipeline, and the adapters that come with it: those of a LoRA repo, given as a model."""
    source = resolve(model, "pipeline")
    with loading(source, "model", [LBGEN_TINY]):
        if not is_lora(source, revision=revision):
            if Path(source).is_dir():
                return Path(source), []
            return Path(LbGenPipeline.download(source, revision=revision, variant=variant, use_safetensors=True)), []
        base, adapter = base_model_of(source, revision=revision), find_file(source, LORA_FILE, revision=revision)
        assert adapter is not None
    folder, adapters = _locate(base, None, variant)
    return folder, [*adapters, adapter]


def _weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The safetensors files of a module that diffusers loads, in order."""
    files = sorted(folder.glob("*.safetensors"))
    special = [file for file in files if variant and f".{variant}" in file.name]
    chosen = special or [file for file in files if "." not in file.stem]
    if not chosen:
        raise UserError(f"{folder} has no safetensors weights, and no others are loaded; convert them")
    return chosen


def _lora_file(lora: str) -> Path:
    """The weights of an adapter: a file, or that of a folder or a Hub repo."""
    lora = resolve(lora, "lora")
    with loading(lora, "LoRA"):
        file = find_lora(lora)
        if file is None:
            raise FileNotFoundError(f"there is no {LORA_FILE}")
    return file


def _own_classes(folder: Path) -> ClassNames:
    """The class list in a pipeline's config; imagenet-1k where it has none."""
    try:
        labels, wnids = saved_classes(folder)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"the model_index.json of {folder} is damaged: {first_line(error)}") from error
    labels = labels or []
    return ClassNames(tuple(labels), tuple(wnids or [None] * len(labels)))


def _digest(files: list[Path]) -> str:
    digests = [_sha256(file, file.stat().st_mtime_ns) for file in map(Path.resolve, files)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@functools.cache
def _sha256(file: Path, _changed: int) -> str:
    """Of a file that is hashed once a process, as long as it stays as it is: a model may have many gigabytes."""
    return sha256_of(file)
