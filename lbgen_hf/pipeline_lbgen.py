"""LbGenPipeline: class labels in, labelled images out.

This file is also the Hub's `pipeline.py` (`custom_pipeline=`): it runs without the rest of lbgen_hf, which then only
misses the shipped model and the default class list.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import itertools
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput
from diffusers.pipelines import auto_pipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput, StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from huggingface_hub import constants, hf_hub_download, metadata_load
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from safetensors import SafetensorError
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection
from yaml import YAMLError

try:
    from lbgen_hf.checks import check_finite, check_finite_weights, check_number
    from lbgen_hf.errors import UserError, first_line
    from lbgen_hf.hub import loading
    from lbgen_hf.shipped import LBGEN_TINY, resolve
except ImportError:  # alone on the Hub: errors are plain, numbers are checked by diffusers, and nothing is shipped
    LBGEN_TINY = "lbgen-tiny"
    UserError, first_line = ValueError, str

    def check_number(*_: Any, **__: Any) -> None: ...

    def check_finite(name: str, values: torch.Tensor) -> None: ...
    def check_finite_weights(name: str, module: torch.nn.Module) -> None: ...

    def _unexplained(*_: Any) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    loading = _unexplained

    def resolve(name: str | Path, part: str) -> str:
        if str(name) == LBGEN_TINY:
            raise UserError(f"{LBGEN_TINY} comes with lbgen_hf: pip install lbgen_hf")
        return str(name)


logger = logging.getLogger(__name__)

LORA_FILE = "pytorch_lora_weights.safetensors"
PIPELINE_FILE = "model_index.json"
MAX_SIDE = 8192
_OUTPUT_TYPES = ("pil", "np", "pt", "latent")
MAX_IMAGES = 10_000  # of one call, which holds them all in memory
# What a LoRA repo and its base, or two downloads of one repo, share.
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token")

# How the class list is called in a saved config.
_PRIVATE = {"class_labels": "_class_labels", "class_wnids": "_class_wnids"}

Label = str | int
Labels = Label | Sequence[Label] | np.ndarray | torch.Tensor
"""A class name, id or wnid, or many of them."""


def image_seed(base_seed: int, class_id: int | str, index: int) -> int:
    """The seed of one image, in [0, 2**63): it depends on these three alone.

    Args:
        base_seed: the seed of the run.
        class_id: the image's class; the prompt itself where there are no classes.
        index: the image's place among those of its class.
    """
    digest = hashlib.sha256(f"{base_seed}:{class_id}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclasses.dataclass
class LbGenPipelineOutput(StableDiffusionPipelineOutput):
    """Labelled images. All lists have one entry an image.

    Attributes:
        images: PIL images, an array (B, H, W, 3), a tensor (B, 3, H, W) in [0, 1], or latents, by `output_type`.
        nsfw_content_detected: the safety checker's verdicts, None without one.
        class_ids: None when the call had a prompt and no labels.
        class_names: likewise.
        seeds: `torch.Generator().manual_seed(seed)` gives the image's noise again. None where one seed does not tell
            it: several images from one generator, or `latents` given.
    """

    class_ids: list[int] | None = None
    class_names: list[str] | None = None
    seeds: list[int] | None = None


def guided_steps(num_steps: int, start: float, stop: float) -> list[int]:
    """The sampling steps that guidance acts on: step i of N where start <= i / N < stop.

    Args:
        num_steps: N, how often the UNet is called; PNDM and schedulers of second order do so more often than asked.
        start, stop: fractions of the sampling steps in [0, 1]; the first step is nearly pure noise.
    """
    return [step for step in range(num_steps) if start <= step / num_steps < stop]


class LbGenPipeline(StableDiffusionPipeline):
    """Stable Diffusion that generates classes: `pipe("goldfish")`, `pipe([1, "n01443537"], images_per_class=4)`.

    Everything else is `StableDiffusionPipeline`'s: schedulers, LoRA, offloading, callbacks, IP-Adapters, single files.

    Args:
        class_labels: the names of the classes, in the order of their ids; the name is the prompt. Part of the saved
            config. Without a class list any name is its own prompt, and there are no ids.
        class_wnids: the WordNet id of each class, or None for all or some of them.
        vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder,
        requires_safety_checker: as in `StableDiffusionPipeline`.

    Raises:
        UserError: the class list is empty, has a name twice, or has not as many wnids as names.
    """

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker,
        feature_extractor: CLIPImageProcessor,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        requires_safety_checker: bool = True,
        class_labels: list | dict | None = None,
        class_wnids: list | dict | None = None,
    ) -> None:
        # diffusers types them too narrowly: it takes an AutoencoderTiny too, and no image encoder.
        parts: Any = vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder
        super().__init__(*parts, requires_safety_checker=requires_safety_checker)
        self._set_classes(_in_order(class_labels), _in_order(class_wnids))

    def _set_classes(self, labels: Sequence[str] | None, wnids: Sequence[str | None] | None) -> None:
        if labels is not None:
            _check_classes(labels, wnids)
            warn_of_same_tokens(self.tokenizer, labels)
        # As dicts, id to value: diffusers takes a list in the config of a Hub repo for a component to download.
        self.register_to_config(class_labels=_by_id(labels), class_wnids=_by_id(wnids))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs) -> "LbGenPipeline":
        """Load a pipeline.

        Args:
            pretrained_model_name_or_path: "lbgen-tiny", the model shipped with lbgen_hf; a folder or Hub id of a
                Stable Diffusion pipeline; or of a LoRA (`pytorch_lora_weights.safetensors` and no `model_index.json`),
                whose base is read from `base_model` in its README's front matter, loaded, and adapted.
            **kwargs: as in diffusers. `dtype` is float32 by default. `class_labels` and `class_wnids` replace the
                saved class list; a model that has none gets imagenet-1k, the paper's. `revision` is the given repo's;
                with a LoRA, `variant` and everything else are its base's. Weights are always safetensors.

        Raises:
            UserError: there is no such model, its weights are not finite or not in safetensors, or it is a LoRA that
                names no base or does not fit it.
        """
        source = resolve(pretrained_model_name_or_path, "pipeline")
        _require_safetensors(kwargs)
        if "class_labels" in kwargs:
            kwargs.setdefault("class_wnids", None)  # not those of the saved list
        if "torch_dtype" not in kwargs:  # left open, transformers takes the stored dtype and diffusers float32
            kwargs.setdefault("dtype", torch.float32)
        hub = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
        with loading(source, "model", [LBGEN_TINY]):
            if not is_lora(source, revision=kwargs.get("revision"), **hub):
                return cls._load(source, **kwargs)
            revision = kwargs.pop("revision", None)
            base = base_model_of(source, revision=revision, **hub)
        pipe = cls.from_pretrained(base, **kwargs)
        pipe.load_lora_weights(source, revision=revision, **hub)
        if len(adapters := pipe._adapter_names()) > 1:  # the base is itself a LoRA, which the next one turns off
            pipe.set_adapters(sorted(adapters))
        return pipe

    @classmethod
    def _load(cls, source: str, **kwargs) -> "LbGenPipeline":
        try:
            pipe = super().from_pretrained(source, **kwargs)
        except (ValueError, SafetensorError) as error:  # a variant that the model does not have; a damaged file
            raise UserError(f"cannot load the model {source!r}: {first_line(error)}") from error
        if pipe.unet is not None:
            check_finite_weights(f"the UNet of {source!r}", pipe.unet)
        if pipe.class_labels is None:
            pipe._set_classes(*_default_classes())
        return pipe

    def load_lora_weights(self, pretrained_model_name_or_path_or_dict, adapter_name=None, **kwargs) -> None:
        """As in diffusers, from safetensors alone; "lbgen-tiny" is the LoRA that is shipped for this model.

        Raises:
            UserError: the LoRA is missing, has weights that do not fit this model or are not finite, or its adapter
                name is taken.
        """
        source, name = pretrained_model_name_or_path_or_dict, "given"
        explained = contextlib.nullcontext()
        if not isinstance(source, dict):
            source = resolve(source, "lora")
            name, explained = repr(source), loading(source, "LoRA")
        taken, hotswap = self._adapter_names(), kwargs.get("hotswap")
        if adapter_name in taken and not hotswap:
            raise UserError(
                f"the adapter name {adapter_name!r} is taken: give another adapter_name, or first delete_adapters"
                f"({adapter_name!r})"
            )
        _require_safetensors(kwargs)
        files = [kwargs.get("weight_name")]
        if not isinstance(source, dict) and Path(source).is_file():
            files.append(source)
        if any(file and not str(file).endswith(".safetensors") for file in files):
            raise UserError(f"the LoRA {name} is no safetensors file, and no others are loaded")
        # One for the UNet and the text encoder, of which diffusers would number each by itself.
        adapter_name = adapter_name or next(new for i in itertools.count() if (new := f"default_{i}") not in taken)
        try:
            with explained, _quiet():
                if not isinstance(source, dict) and not kwargs.keys() & {"weight_name", "subfolder"}:
                    hub = {option: kwargs[option] for option in ("revision", *_HUB_OPTIONS) if option in kwargs}
                    source = str(find_lora(source, **hub) or source)  # diffusers knows how to look for another name
                if misfit := self._add_lora(source, adapter_name, kwargs):
                    model = f"the model {self.name_or_path!r}" if self.name_or_path else "this model"
                    raise UserError(f"the LoRA {name} does not fit {model}: {misfit}")
            for module in self._adapted():
                check_finite_weights(f"the LoRA {name}", module)
        except UserError:
            if not taken:
                self.unload_lora_weights()  # empty layers too
            elif not hotswap:
                self.delete_adapters(adapter_name)
            raise

    def _add_lora(self, source: str | dict, adapter_name: str, options: dict[str, Any]) -> str | None:
        """Put a LoRA on the UNet and the text encoder, and say what of it does not fit, which diffusers only logs."""
        weights = {}
        try:
            weights, *_ = self.lora_state_dict(source, **options)
            super().load_lora_weights(source, adapter_name=adapter_name, **options)
        except (RuntimeError, LookupError, ValueError, SafetensorError) as error:
            if isinstance(error, HFValidationError):
                raise
            if "mismatch" in str(error):
                return f"{str(error).count('size mismatch for') or 'some'} of its weights have another shape"
            # Where no module is found, diffusers has no rank to look up, or peft no target.
            missing = isinstance(error, LookupError) or "Target modules" in str(error)
            if not missing or not weights or options.get("hotswap"):
                return first_line(error)
        if options.get("hotswap"):
            return None  # diffusers has compared them
        parameters = [name for module in self._adapted() for name, _ in module.named_parameters()]
        # They are called "...lora_A.{adapter_name}.weight".
        loaded = sum(name.partition(".lora_")[2].split(".")[1:2] == [adapter_name] for name in parameters)
        if not weights:
            return "it is empty"
        unfit = abs(len(weights) - loaded)
        return f"{unfit} of its {len(weights)} weights have no place in it" if unfit else None

    def _adapted(self) -> list[torch.nn.Module]:
        """What a LoRA may have weights for."""
        return [module for module in (self.unet, self.text_encoder) if module is not None]

    def _adapter_names(self) -> set[str]:
        return {name for names in self.get_list_adapters().values() for name in names}

    def to_json_string(self) -> str:
        """The config as it is saved: of a `StableDiffusionPipeline`, so that every loader of diffusers takes it.

        The class list is a private entry of it, which plain diffusers skips without a word.
        """
        config = json.loads(super().to_json_string())
        config = {_PRIVATE.get(name, name): value for name, value in config.items()}
        return json.dumps(config | {"_class_name": "StableDiffusionPipeline"}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs) -> tuple[dict, dict, dict]:
        """As in diffusers, with the class list that `to_json_string` saved."""
        public = {private: name for name, private in _PRIVATE.items()}
        return super().extract_init_dict({public.get(name, name): v for name, v in config_dict.items()}, **kwargs)

    @property
    def class_labels(self) -> list[str] | None:
        """The names of the classes, in the order of their ids; None without a class list."""
        return _in_order(self.config["class_labels"])

    @property
    def class_wnids(self) -> list[str | None] | None:
        """The WordNet ids of the classes, in the order of their ids; None where there are none."""
        return _in_order(self.config["class_wnids"])

    def get_label_ids(self, class_labels: Labels) -> list[int]:
        """Class ids of names, wnids or ids, given as in `__call__`.

        Raises:
            UserError: there is no such class (the nearest names are given), no label at all, or no class list.
        """
        labels, names = _as_list(class_labels), self.class_labels
        if not labels:
            raise UserError("no class labels given: name at least one class")
        if names is None:
            raise UserError("this pipeline has no class list: pass class_labels= when loading it")
        ids = {wnid: i for i, wnid in enumerate(self.class_wnids or []) if wnid}
        ids |= {name: i for i, name in enumerate(names)}
        return [ids[label] if label in ids else _checked_id(label, names) for label in labels]

    def prepare_latents(
        self, batch_size, num_channels_latents, height, width, dtype, device, generator, latents=None
    ) -> torch.Tensor:
        """Noise is sampled in float32 whatever the model's dtype, so that a seed means one image."""
        latents = super().prepare_latents(
            batch_size, num_channels_latents, height, width, torch.float32, device, generator, latents
        )
        return latents.to(dtype)

    @property
    def guidance_scale(self) -> float:
        """The scale of the present step; it is 1, which leaves the prompt's prediction alone, where guidance is off."""
        if self._guidance_window == (0.0, 1.0) or self._step in guided_steps(
            self.num_timesteps, *self._guidance_window
        ):
            return self._guidance_scale
        return 1.0

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels | None = None,
        *,
        prompt: str | list[str] | None = None,
        images_per_class: int | None = None,
        seed: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 2.0,
        guidance_start: float = 0.0,
        guidance_stop: float = 1.0,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: PipelineImageInput | None = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
    ) -> LbGenPipelineOutput | tuple:
        """Generate images of classes.

        The noise of an image depends on its seed alone, which depends on `seed`, its class and its place among the
        images of that class in this call: not on the batch. The images come class by class.

        Args:
            class_labels: a class name, id or wnid, or a list, array or tensor of them.
            prompt: the text to generate, instead of the class names: one for each label; or, without labels, anything.
            images_per_class: how many images of each label, or of each prompt; default: `num_images_per_prompt`.
            seed: the base seed of the run; default: a random one, from torch's global generator.
            height, width: of the images, in pixels, multiples of 8; default: what the model was trained for.
            num_inference_steps: the paper's 50.
            timesteps, sigmas: a schedule of one's own, for schedulers that take one, instead of `num_inference_steps`.
            guidance_scale: of classifier-free guidance, the paper's 2.0; there is none at 1 and below.
            guidance_start, guidance_stop: guidance acts between these fractions of the sampling steps (see
                `guided_steps`). The time of a step is the same without it; `lbgen generate` saves the time too.
            negative_prompt: what guidance leads away from: one text for all labels, or one for each.
            num_images_per_prompt: diffusers' name for `images_per_class`.
            eta: of DDIM, in [0, 1]; other schedulers ignore it.
            generator: one for all images, or a list with one an image, instead of `seed`.
            latents: (B, channels, height / 8, width / 8) standard normal noise to start from, B images in all.
            prompt_embeds: (labels, tokens, width), instead of the class names or `prompt`.
            negative_prompt_embeds: (labels, tokens, width), instead of `negative_prompt`.
            ip_adapter_image: the image prompt of a loaded IP-Adapter.
            ip_adapter_image_embeds: its embeddings instead, a tensor for each IP-Adapter; with guidance, the negative
                ones come first.
            output_type: "pil", "np", "pt" or "latent"; see `LbGenPipelineOutput`.
            return_dict: False for a tuple of the output's fields.
            cross_attention_kwargs: for the attention processors; `{"scale": s}` weights the LoRA.
            guidance_rescale: against overexposure by guidance (arXiv 2305.08891); 0 leaves images as they are.
            clip_skip: how many of the text encoder's last layers are skipped.
            callback_on_step_end: called after each step as `callback(pipe, step, timestep, tensors)`; what it returns
                replaces these tensors.
            callback_on_step_end_tensor_inputs: the names of the tensors that it is given.

        Raises:
            UserError: an unknown class or no class at all, numbers that are not finite or out of range, or arguments
                that contradict each other.

        Example:
            >>> pipe = LbGenPipeline.from_pretrained("lbgen-tiny")
            >>> output = pipe(["star", "fish"], images_per_class=2, seed=0)
            >>> output.class_names
            ['star', 'star', 'fish', 'fish']
        """
        count = _one_count(images_per_class, num_images_per_prompt)
        check_number("seed", seed, integer=True)
        check_number("height", height, at_least=8, at_most=MAX_SIDE, integer=True)
        check_number("width", width, at_least=8, at_most=MAX_SIDE, integer=True)
        check_number("guidance_scale", guidance_scale)
        check_number("guidance_rescale", guidance_rescale, at_least=0)
        check_number("guidance_stop", guidance_stop, at_least=0, at_most=1)
        check_number("guidance_start", guidance_start, at_least=0, at_most=guidance_stop)
        check_number("eta", eta, at_least=0, at_most=1)
        for name, side in (("height", height), ("width", width)):
            if side is not None and side % self.vae_scale_factor:
                raise UserError(f"{name} must be a multiple of {self.vae_scale_factor}, got {side}")
        if clip_skip is not None:
            layers = self.text_encoder.config.num_hidden_layers
            check_number("clip_skip", clip_skip, at_least=0, below=layers, integer=True)
        if output_type not in _OUTPUT_TYPES:
            raise UserError(f"unknown output_type {output_type!r}; choose from {', '.join(_OUTPUT_TYPES)}")
        prompts, negatives = _as_texts("prompt", prompt), _as_texts("negative_prompt", negative_prompt)
        if timesteps is None and sigmas is None:
            longest = self.scheduler.config.get("num_train_timesteps", num_inference_steps)
            check_number("num_inference_steps", num_inference_steps, at_least=1, at_most=longest, integer=True)
        if (guidance_start, guidance_stop) != (0, 1) and self.unet.config.time_cond_proj_dim is not None:
            raise UserError("this model takes its guidance as an input: leave guidance_start and guidance_stop out")
        if seed is not None and generator is not None:
            raise UserError("give seed or generator, not both")

        class_ids = class_names = None
        if class_labels is not None:
            class_ids, class_names = self._classes_of(class_labels)
        if prompts is None and prompt_embeds is None:
            prompts = class_names
        given = prompt_embeds if prompts is None else prompts
        if given is None or len(given) == 0:
            raise UserError("nothing to generate: give class_labels, prompt or prompt_embeds")
        num_prompts = len(given)
        if class_names is not None and num_prompts != len(class_names):
            raise UserError(f"{num_prompts} prompts for {len(class_names)} class labels: give one for each")
        if num_prompts * count > MAX_IMAGES:
            raise UserError(
                f"{num_prompts * count} images are too many for one call, at most {MAX_IMAGES}; `lbgen generate` makes"
                " datasets of any size"
            )
        num_images = num_prompts * count
        if isinstance(generator, list) and len(generator) != num_images:
            raise UserError(f"{len(generator)} generators for {num_images} images: give one, or one for each")
        for name, tensor in (("latents", latents), ("prompt_embeds", prompt_embeds)):
            if tensor is not None:
                check_finite(name, tensor)
        if latents is not None and latents.shape[:2] != (num_images, self.unet.config.in_channels):
            wanted = f"({num_images}, {self.unet.config.in_channels}, height / 8, width / 8)"
            raise UserError(f"latents must have the shape {wanted}, got {tuple(latents.shape)}")
        if isinstance(negative_prompt, str):
            negatives = [negative_prompt] * num_prompts
        elif negatives is not None and len(negatives) != num_prompts:
            raise UserError(f"{len(negatives)} negative prompts for {num_prompts} prompts: give one for each")

        if generator is None:
            base_seed = int(torch.randint(2**63 - 1, ())) if seed is None else seed
            # Without labels the prompt stands for the class.
            keys = class_ids or class_names or prompts or [""] * num_prompts
            seeds = _image_seeds(base_seed, keys, count)
            generator = [torch.Generator().manual_seed(image_seed) for image_seed in seeds]
        else:
            seeds = _seeds_of(generator) if isinstance(generator, list) or num_prompts * count == 1 else None

        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        self._guidance_window, self._step = (guidance_start, guidance_stop), 0

        def count_step(pipe: LbGenPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
            self._step = step + 1
            return callback_on_step_end(pipe, step, timestep, tensors) if callback_on_step_end else tensors

        generate: Any = super().__call__  # which types its arguments without None, their default
        output = generate(
            prompt=prompts,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            guidance_scale=guidance_scale,
            negative_prompt=negatives,
            num_images_per_prompt=count,
            eta=eta,
            generator=generator,
            latents=latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            ip_adapter_image=ip_adapter_image,
            ip_adapter_image_embeds=ip_adapter_image_embeds,
            output_type=output_type,
            cross_attention_kwargs=cross_attention_kwargs,
            guidance_rescale=guidance_rescale,
            clip_skip=clip_skip,
            callback_on_step_end=count_step,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        output = LbGenPipelineOutput(
            images=output.images,
            nsfw_content_detected=output.nsfw_content_detected,
            class_ids=_repeat(class_ids, count),
            class_names=_repeat(class_names, count),
            seeds=None if latents is not None else seeds,
        )
        if return_dict:
            return output
        return tuple(getattr(output, field.name) for field in dataclasses.fields(output))

    def _classes_of(self, class_labels: Labels) -> tuple[list[int] | None, list[str]]:
        """Ids and names. A pipeline without a class list generates any name, and has no ids."""
        labels, names = _as_list(class_labels), self.class_labels
        if names is None and labels and all(isinstance(label, str) for label in labels):
            return None, [str(label) for label in labels]
        class_ids = self.get_label_ids(labels)
        return class_ids, [(names or [])[i] for i in class_ids]


# AutoPipelineForText2Image.from_pipe and its siblings find a pipeline's relatives by the name of its class.
auto_pipeline.SUPPORTED_TASKS_MAPPINGS.append({"stable-diffusion": LbGenPipeline})


def _as_list(labels: Labels) -> list[Label]:
    """Names, ids and wnids as Python's own values.

    Raises:
        UserError: something else, such as a set, whose order is not defined, or True, which is no id.
    """
    values: Any = labels.tolist() if isinstance(labels, np.ndarray | torch.Tensor) else labels
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        values = [values]
    values = [value.tolist() if isinstance(value, np.generic | torch.Tensor) else value for value in values]
    for label in values:
        if not isinstance(label, str | int) or isinstance(label, bool):
            kind = type(label).__name__
            raise UserError(f"class_labels takes a name, an id, a wnid, or a list, array or tensor of them, no {kind}")
    return values


def _checked_id(label: str | int, names: list[str]) -> int:
    if isinstance(label, str):
        close = difflib.get_close_matches(label, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "see class_labels for the names"
        raise UserError(f"unknown class {label!r}: {hint} (prompt= takes free text)")
    if not 0 <= label < len(names):
        raise UserError(f"class id {label} is not in 0..{len(names) - 1}")
    return label


def _as_texts(name: str, texts: object) -> list[str] | None:
    """A text or several as a list; None where none is given.

    Raises:
        UserError: something else.
    """
    if texts is None:
        return None
    listed = [texts] if isinstance(texts, str) else texts
    if not isinstance(listed, list | tuple) or not all(isinstance(text, str) for text in listed):
        raise UserError(f"{name} must be a text or a list of texts, got {texts!r}")
    return list(listed)


def _require_safetensors(options: dict[str, Any]) -> None:
    if options.setdefault("use_safetensors", True) is False:
        raise UserError("weights are loaded from safetensors alone: leave use_safetensors out")


def _one_count(images_per_class: int | None, num_images_per_prompt: int | None) -> int:
    """Images of each label, from our name for it and from diffusers'."""
    check_number("images_per_class", images_per_class, at_least=1, integer=True)
    check_number("num_images_per_prompt", num_images_per_prompt, at_least=1, integer=True)
    theirs = 1 if num_images_per_prompt is None else num_images_per_prompt
    if images_per_class is None:
        return theirs
    if theirs not in (1, images_per_class):
        raise UserError(f"images_per_class is {images_per_class} and num_images_per_prompt {theirs}: give one of them")
    return images_per_class


def _seeds_of(generator: torch.Generator | list[torch.Generator]) -> list[int] | None:
    """The seeds of generators, as fresh ones on the CPU give the noise again; None where they would not."""
    generators = generator if isinstance(generator, list) else [generator]
    if len({id(one) for one in generators}) < len(generators):
        return None
    seeds = [one.initial_seed() for one in generators]
    for one, seed in zip(generators, seeds, strict=True):
        if one.device.type != "cpu" or not torch.equal(
            one.get_state(), torch.Generator().manual_seed(seed).get_state()
        ):
            return None
    return seeds


def _image_seeds(base_seed: int, keys: Sequence[int | str], images_per_key: int) -> list[int]:
    """Seeds key by key. A key that is repeated continues its count, so that no two images are the same."""
    counted = Counter()
    seeds = []
    for key in keys:
        seeds += [image_seed(base_seed, key, counted[key] + i) for i in range(images_per_key)]
        counted[key] += images_per_key
    return seeds


def _repeat(values: list | None, count: int) -> list | None:
    return None if values is None else [value for value in values for _ in range(count)]


def _default_classes() -> tuple[tuple | None, tuple | None]:
    """Names and wnids of imagenet-1k; None where lbgen_hf is not installed."""
    try:
        from lbgen_hf.class_names import load_class_names
    except ImportError:
        return None, None
    classes = load_class_names("imagenet-1k")
    return classes.names, classes.wnids


def _in_order(values: Sequence | dict | None) -> list | None:
    """The values of a class list, or of the dict that it is saved as (whose keys JSON has sorted as text)."""
    if isinstance(values, dict):
        return [values[class_id] for class_id in sorted(values, key=int)]
    return None if values is None else list(values)


def _by_id(values: Sequence | None) -> dict[str, str | None] | None:
    return None if values is None else {str(class_id): value for class_id, value in enumerate(values)}


def _check_classes(class_labels: Sequence[str], class_wnids: Sequence[str | None] | None) -> None:
    if len(class_labels) == 0:
        raise UserError("the class list is empty: give class_labels at least one name")
    if wrong := [label for label in class_labels if not isinstance(label, str) or not label.strip()]:
        raise UserError(f"the class list has {wrong[0]!r}, which is no name: a class is prompted by its name")
    name, count = Counter(class_labels).most_common(1)[0]
    if count > 1:
        raise UserError(f"the class list has {name!r} {count} times: give each class a name of its own")
    if class_wnids is not None and len(class_wnids) != len(class_labels):
        raise UserError(f"{len(class_wnids)} class_wnids for {len(class_labels)} class_labels: give one for each")


def warn_of_same_tokens(tokenizer: CLIPTokenizer | None, class_labels: Sequence[str]) -> None:
    """Warn of class names that are the same to the text encoder: both classes get the same images.

    Letter case is not seen, nor what comes after the tokenizer's greatest length.
    """
    if tokenizer is None:
        return
    tokens = tokenizer(list(class_labels), truncation=True, max_length=tokenizer.model_max_length).input_ids
    first: dict[tuple[int, ...], str] = {}
    for name, ids in zip(class_labels, map(tuple, tokens), strict=True):
        if first.setdefault(ids, name) != name:
            logger.warning("the classes %r and %r are the same %d tokens: change a name", first[ids], name, len(ids))


def find_file(source: str | Path, filename: str, **hub) -> Path | None:
    """A file of a folder or Hub repo, None where it has none; `hub` is for `hf_hub_download`."""
    if Path(source).is_dir():
        path = Path(source) / filename
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(str(source), filename, **hub))
    except EntryNotFoundError:
        return None


def is_lora(source: str | Path, **hub) -> bool:
    """Whether a folder or Hub repo holds a LoRA, and not a pipeline.

    Raises:
        FileNotFoundError: it holds neither.
    """
    if find_file(source, PIPELINE_FILE, **hub):
        return False
    if find_file(source, LORA_FILE, **hub):
        return True
    raise FileNotFoundError(f"there is neither {PIPELINE_FILE} nor {LORA_FILE}")


def find_lora(source: str | Path, **hub) -> Path | None:
    """The weights of a LoRA: the file itself, or that of a folder or Hub repo, None where it has another name.

    Raises:
        FileNotFoundError: the Hub cannot be asked, and the cache does not have it.
    """
    file = Path(source) if Path(source).is_file() else find_file(source, LORA_FILE, **hub)
    offline = constants.HF_HUB_OFFLINE or hub.get("local_files_only")
    if file is None and offline and not Path(source).exists():
        raise FileNotFoundError(f"there is no {LORA_FILE}")
    return file


def base_model_of(source: str | Path, **hub) -> str:
    """`base_model` in the front matter of a LoRA's README.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    card = find_file(source, "README.md", **hub)
    try:
        base = (metadata_load(card) or {}).get("base_model") if card else None
    except (ValueError, YAMLError) as error:
        raise UserError(f"the README.md of the LoRA {str(source)!r} cannot be read: {first_line(error)}") from error
    if isinstance(base, list):
        base = base[0] if base else None
    if not base:
        raise UserError(
            f"the LoRA {source!r} does not name its base: write `base_model: ...` in its README.md's front matter"
        )
    return base


def base_of(model: str | Path, revision: str | None = None) -> str:
    """The pipeline that a model's weights are of: a LoRA's base, any other model itself; no weights are loaded.

    Raises:
        UserError: there is no such model, or it is a LoRA that names no base.
    """
    source = resolve(model, "pipeline")
    with loading(source, "model", [LBGEN_TINY]):
        if not is_lora(source, revision=revision):
            return str(model)
        base = base_model_of(source, revision=revision)
    return base_of(base)


def saved_classes(folder: str | Path) -> tuple[list[str] | None, list[str | None] | None]:
    """Class names and wnids as `LbGenPipeline.from_pretrained` finds them in a saved pipeline, without loading it."""
    config: Any = LbGenPipeline.load_config(folder)
    labels = _in_order(config.get(_PRIVATE["class_labels"], config.get("class_labels")))
    if labels is None:
        labels, wnids = _default_classes()
        return _in_order(labels), _in_order(wnids)
    return labels, _in_order(config.get(_PRIVATE["class_wnids"], config.get("class_wnids")))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what tells of a LoRA that does not fit, which is raised here, or leaves the text encoder alone."""
    names = ("loaders.peft", "loaders.lora_base", "utils.peft_utils")
    loggers = [logging.getLogger(f"diffusers.{name}") for name in names]
    loggers.append(logging.getLogger("transformers.integrations.peft"))
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
