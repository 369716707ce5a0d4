"""LbGenPipeline: class labels in, labelled images out.

This file is also the Hub's `pipeline.py` (`custom_pipeline=`): it runs without the rest of lbgen_hf, which then only
misses the shipped model and the default class list.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import logging
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput, StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

try:
    from lbgen_hf.errors import UserError
except ImportError:
    UserError = ValueError

LBGEN_TINY = "lbgen-tiny"
LORA_FILE = "pytorch_lora_weights.safetensors"
PIPELINE_FILE = "model_index.json"
# What a LoRA repo and its base, or two downloads of one repo, share.
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token")


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
        seeds: `torch.Generator().manual_seed(seed)` draws the image again. None where one seed does not tell an image's
            noise: several images from one generator, or `latents` given.
    """

    class_ids: list[int] | None = None
    class_names: list[str] | None = None
    seeds: list[int] | None = None


class LbGenPipeline(StableDiffusionPipeline):
    """Stable Diffusion that draws classes: `pipe("goldfish")`, `pipe([1, "n01443537"], images_per_class=4, seed=0)`.

    Everything else is `StableDiffusionPipeline`'s: schedulers, LoRA, offloading, callbacks, IP-Adapters, single files.

    Args:
        class_labels: the names of the classes, in the order of their ids; the name is the prompt. Default:
            imagenet-1k's. Part of the saved config.
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
        image_encoder: CLIPVisionModelWithProjection = None,
        requires_safety_checker: bool = True,
        class_labels: list | dict | None = None,
        class_wnids: list | dict | None = None,
    ) -> None:
        parts = vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder
        super().__init__(*parts, requires_safety_checker=requires_safety_checker)
        if class_labels is None:
            class_labels, class_wnids = _default_classes()
        class_labels, class_wnids = _in_order(class_labels), _in_order(class_wnids)
        if class_labels is not None:
            _check_classes(class_labels, class_wnids)
        # As dicts, id to value: diffusers takes a list in the config of a Hub repo for a component to download.
        self.register_to_config(class_labels=_by_id(class_labels), class_wnids=_by_id(class_wnids))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs) -> "LbGenPipeline":
        """Load a pipeline.

        Args:
            pretrained_model_name_or_path: "lbgen-tiny", the model shipped with lbgen_hf; a folder or Hub id of a
                Stable Diffusion pipeline; or of a LoRA (`pytorch_lora_weights.safetensors` and no `model_index.json`),
                whose base is read from `base_model` in its README's front matter, loaded, and adapted.
            **kwargs: as in diffusers; `dtype` is float32 by default, `class_labels` and `class_wnids` replace the
                saved class list, and `revision` is the given repo's, not the base's.

        Raises:
            UserError: there is no such model, its LoRA names no base, or does not fit it.
        """
        source = str(pretrained_model_name_or_path)
        if source == LBGEN_TINY:
            source, class_labels = _shipped_pipeline()
            kwargs.setdefault("class_labels", class_labels)
        if "class_labels" in kwargs:
            kwargs.setdefault("class_wnids", None)  # not those of the saved list
        if "torch_dtype" not in kwargs:  # left open, transformers takes the stored dtype and diffusers float32
            kwargs.setdefault("dtype", torch.float32)
        hub = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
        with _explain_missing(source):
            if not _is_lora(source, revision=kwargs.get("revision"), **hub):
                return super().from_pretrained(source, **kwargs)
            revision = kwargs.pop("revision", None)
            base = _base_model(source, revision=revision, **hub)
        pipe = cls.from_pretrained(base, **kwargs)
        pipe.load_lora_weights(source, weight_name=LORA_FILE, revision=revision, **hub)
        return pipe

    def load_lora_weights(self, pretrained_model_name_or_path_or_dict, adapter_name=None, **kwargs) -> None:
        """As in diffusers; a LoRA that is missing or made for another model is a `UserError`."""
        source = pretrained_model_name_or_path_or_dict
        name = "given" if isinstance(source, dict) else f"{str(source)!r}"
        adapters = self.get_list_adapters()
        with _explain_missing(source), _quiet("diffusers.loaders.peft", "diffusers.loaders.lora_base"):
            try:
                super().load_lora_weights(source, adapter_name=adapter_name, **kwargs)
            except (RuntimeError, KeyError, ValueError) as error:
                if isinstance(error, HFValidationError):
                    raise
                raise UserError(f"the LoRA {name} does not fit this model: {_first_line(error)}") from error
        if self.get_list_adapters() == adapters and not kwargs.get("hotswap"):
            raise UserError(f"the LoRA {name} does not fit this model: it has nothing for its UNet or text encoder")

    @property
    def class_labels(self) -> list[str] | None:
        """The names of the classes, in the order of their ids."""
        return _in_order(self.config.class_labels)

    @property
    def class_wnids(self) -> list[str | None] | None:
        """The WordNet ids of the classes, in the order of their ids; None where there are none."""
        return _in_order(self.config.class_wnids)

    def get_label_ids(self, class_labels: str | int | Sequence[str | int]) -> list[int]:
        """Class ids of names, wnids or ids.

        Raises:
            UserError: there is no such class (the nearest names are given), no label at all, or no class list.
        """
        labels = _as_list(class_labels)
        if not labels:
            raise UserError("no class labels given: name at least one class")
        if self.class_labels is None:
            raise UserError("this pipeline has no class list: pass class_labels= when loading it")
        ids = {wnid: i for i, wnid in enumerate(self.class_wnids or []) if wnid}
        ids |= {name: i for i, name in enumerate(self.class_labels)}
        return [ids[label] if label in ids else self._checked_id(label) for label in labels]

    def _checked_id(self, label: str | int) -> int:
        names = self.class_labels
        if isinstance(label, str):
            close = difflib.get_close_matches(label, names, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "see class_labels for the names"
            raise UserError(f"unknown class {label!r}: {hint} (prompt= takes free text)")
        class_id = operator.index(label)
        if not 0 <= class_id < len(names):
            raise UserError(f"class id {class_id} is not in 0..{len(names) - 1}")
        return class_id

    def prepare_latents(
        self, batch_size, num_channels_latents, height, width, dtype, device, generator, latents=None
    ) -> torch.Tensor:
        """Noise is drawn in float32 whatever the model's dtype, so that a seed means one picture."""
        latents = super().prepare_latents(
            batch_size, num_channels_latents, height, width, torch.float32, device, generator, latents
        )
        return latents.to(dtype)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: str | int | Sequence[str | int] | None = None,
        *,
        prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        images_per_class: int = 1,
        num_images_per_prompt: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 2.0,
        return_dict: bool = True,
        **kwargs,
    ) -> LbGenPipelineOutput | tuple:
        """Draw images of classes.

        The noise of an image depends on its seed alone, which depends on `seed`, its class and its place among the
        images of that class in this call: not on the batch. The images come class by class.

        Args:
            class_labels: names, ids and wnids of classes, one or a list of them.
            prompt: the text to draw, instead of the class names: one for each label; or, without labels, anything.
            prompt_embeds: (B, tokens, width), likewise instead of the class names.
            images_per_class: how many images of each label, or of each prompt.
            num_images_per_prompt: diffusers' name for it.
            seed: the base seed of the run; default: a random one, drawn from torch's global generator.
            generator: one for all images, or a list with one an image, instead of `seed`.
            latents: (B, channels, height, width) noise to start from.
            num_inference_steps: the paper's 50.
            guidance_scale: the paper's 2.0.
            return_dict: False for a tuple of the output's fields.
            **kwargs: `StableDiffusionPipeline`'s other arguments: `negative_prompt`, `height`, `output_type`,
                `cross_attention_kwargs`, `callback_on_step_end`, `ip_adapter_image`...

        Raises:
            UserError: an unknown class, no class at all, `images_per_class` < 1, or arguments that contradict.

        Example:
            >>> pipe = LbGenPipeline.from_pretrained("lbgen-tiny")
            >>> output = pipe(["star", "moon"], images_per_class=2, seed=0)
            >>> output.class_names
            ['star', 'star', 'moon', 'moon']
        """
        count = images_per_class if num_images_per_prompt is None else num_images_per_prompt
        if count < 1:
            raise UserError(f"images_per_class must be at least 1, got {count}")
        if seed is not None and generator is not None:
            raise UserError("give seed or generator, not both")

        class_ids = class_names = None
        if class_labels is not None:
            class_ids, class_names = self._classes_of(class_labels)
        if prompt is None and prompt_embeds is None:
            prompt = class_names
        if prompt is None and prompt_embeds is None:
            raise UserError("nothing to draw: give class_labels, prompt or prompt_embeds")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        num_prompts = len(prompts) if prompts is not None else len(prompt_embeds)
        if class_names is not None and num_prompts != len(class_names):
            raise UserError(f"{num_prompts} prompts for {len(class_names)} class labels: give one for each")

        if generator is None:
            base_seed = int(torch.randint(2**63 - 1, ())) if seed is None else seed
            # Without labels the prompt stands for the class.
            keys = class_ids or class_names or prompts or [""] * num_prompts
            seeds = _image_seeds(base_seed, keys, count)
            generator = [torch.Generator().manual_seed(image_seed) for image_seed in seeds]
        elif isinstance(generator, list):
            seeds = [one.initial_seed() for one in generator]
        else:
            seeds = [generator.initial_seed()] if num_prompts * count == 1 else None

        output = super().__call__(
            prompt=prompt,
            prompt_embeds=prompt_embeds,
            num_images_per_prompt=count,
            generator=generator,
            latents=latents,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            **kwargs,
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

    def _classes_of(self, class_labels: str | int | Sequence[str | int]) -> tuple[list[int] | None, list[str]]:
        """Ids and names. A pipeline without a class list draws any name, and has no ids."""
        labels = _as_list(class_labels)
        if self.class_labels is None and labels and all(isinstance(label, str) for label in labels):
            return None, labels
        class_ids = self.get_label_ids(labels)
        return class_ids, [self.class_labels[i] for i in class_ids]


def _as_list(labels: str | int | Sequence[str | int]) -> list[str | int]:
    return [labels] if isinstance(labels, str) or not isinstance(labels, Sequence) else list(labels)


def _image_seeds(base_seed: int, keys: Sequence[int | str], images_per_key: int) -> list[int]:
    """Seeds key by key. A key that comes again goes on counting, so that no two images are the same."""
    drawn = Counter()
    seeds = []
    for key in keys:
        seeds += [image_seed(base_seed, key, drawn[key] + i) for i in range(images_per_key)]
        drawn[key] += images_per_key
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


def _by_id(values: list | None) -> dict[str, str | None] | None:
    return None if values is None else {str(class_id): value for class_id, value in enumerate(values)}


def _check_classes(class_labels: Sequence[str], class_wnids: Sequence[str | None] | None) -> None:
    if len(class_labels) == 0:
        raise UserError("the class list is empty: give class_labels at least one name")
    name, count = Counter(class_labels).most_common(1)[0]
    if count > 1:
        raise UserError(f"the class list has {name!r} {count} times: give each class a name of its own")
    if class_wnids is not None and len(class_wnids) != len(class_labels):
        raise UserError(f"{len(class_wnids)} class_wnids for {len(class_labels)} class_labels: give one for each")


def _shipped_pipeline() -> tuple[str, list[str]]:
    """The folder of lbgen-tiny, and its classes."""
    try:
        from lbgen_hf.biaslab import MODELS
        from lbgen_hf.biaslab.scenes import CLASSES
    except ImportError:
        raise UserError(f"{LBGEN_TINY} comes with lbgen_hf: pip install lbgen_hf") from None
    return str(MODELS / "pipeline"), CLASSES


def _find(source: str, filename: str, **hub) -> Path | None:
    """A file of a folder or Hub repo, None where it has none."""
    if Path(source).is_dir():
        path = Path(source) / filename
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(source, filename, **hub))
    except EntryNotFoundError:
        return None


def _is_lora(source: str, **hub) -> bool:
    return _find(source, LORA_FILE, **hub) is not None and _find(source, PIPELINE_FILE, **hub) is None


def _base_model(source: str, **hub) -> str:
    """`base_model` in the front matter of a LoRA's README."""
    card = _find(source, "README.md", **hub)
    base = (metadata_load(card) or {}).get("base_model") if card else None
    if isinstance(base, list):
        base = base[0] if base else None
    if not base:
        raise UserError(
            f"the LoRA {source!r} does not name its base: write `base_model: ...` in its README.md's front matter"
        )
    return base


@contextlib.contextmanager
def _explain_missing(source: object) -> Iterator[None]:
    """Turn what the Hub and the file system say of a model that is not there into one line."""
    try:
        yield
    except (HFValidationError, HfHubHTTPError, EntryNotFoundError, OSError) as error:
        if Path(str(source)).is_dir():
            raise UserError(f"{str(source)!r} does not hold the whole model: {_first_line(error)}") from error
        raise UserError(
            f"no model {str(source)!r}: it is not a folder here, and the Hub does not give it; give {LBGEN_TINY!r}, "
            f"a folder or a Hub id ({_first_line(error)})"
        ) from error


@contextlib.contextmanager
def _quiet(*logger_names: str) -> Iterator[None]:
    """Silence loggers that report what is raised as well, or that a LoRA leaves the text encoder alone."""
    loggers = [logging.getLogger(name) for name in logger_names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
