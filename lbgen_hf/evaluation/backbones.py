"""Any timm or transformers image model as a frozen backbone: features before its head, and the head's logits."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from PIL import Image
from torch import Tensor, nn

from lbgen_hf.class_names import load_class_names
from lbgen_hf.devices import pick_device
from lbgen_hf.errors import UserError, first_line


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A frozen image model.

    Attributes:
        name: what was asked for.
        features: images (B, 3, H, W), transformed, to features (B, D), those that the head sees.
        logits: images to logits (B, C); None without a head.
        transform: a PIL image in RGB to what `features` and `logits` take.
        transform_key: says all that the transform does.
        weights_sha256: of the names and values of all weights that the checkpoint has.
        architecture_sha256: of what the weights do not say: activations, pooling, the number of heads.
        class_names: of the head's classes; None where the checkpoint does not say.
        num_classes: of the head; 0 without one.
        device: where it runs.
    """

    name: str
    features: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor] | None
    transform: Callable[[Image.Image], Tensor]
    transform_key: str
    weights_sha256: str
    architecture_sha256: str
    class_names: tuple[str, ...] | None
    num_classes: int
    device: torch.device


def load_backbone(checkpoint: str | Path, device: str | torch.device | None = None) -> Backbone:
    """Load a backbone.

    Args:
        checkpoint: a folder or a Hub id of a timm or a transformers model; a weights file beside its `config.json`; or
            the name of a pretrained timm model, such as "resnet50.tv_in1k".
        device: default: the fastest.

    Raises:
        UserError: there is no such checkpoint, its weights are not of its architecture, or it does not take the images
            that its config makes of any.
    """
    backbone = _load(checkpoint, pick_device(device))
    try:
        with torch.inference_mode():
            backbone.features(backbone.transform(Image.new("RGB", (64, 64)))[None].to(backbone.device))
    except Exception as error:  # each architecture raises its own
        raise UserError(
            f"{checkpoint} does not take the images that its config makes of any: {first_line(error)[:300]}"
        ) from error
    return backbone


def _load(checkpoint: str | Path, device: torch.device) -> Backbone:
    import timm

    name, found = str(checkpoint), _find(checkpoint)
    if found is None:
        try:
            model = timm.create_model(name, pretrained=True)
        except Exception as error:
            raise UserError(f"timm cannot load {name} with weights: {first_line(error)[:300]}") from error
        return from_timm(model, name, device)
    source, architecture = found
    if architecture is None:
        return _from_transformers(source, name, device)
    prefix = "local-dir" if Path(source).is_dir() else "hf-hub"
    try:
        model = timm.create_model(f"{prefix}:{source}", pretrained=True)
    except Exception as error:
        raise UserError(
            f"the weights of {name} are not of the architecture {architecture!r} in its config.json, or cannot be read:"
            f" {first_line(error)[:300]}"
        ) from error
    return from_timm(model, name, device)


def check_backbone(checkpoint: str | Path) -> None:
    """Follow a checkpoint's name to its config, without loading its weights.

    Raises:
        UserError: there is no such checkpoint, or its config is neither timm's nor transformers'.
    """
    _find(checkpoint)


def _find(checkpoint: str | Path) -> tuple[str, str | None] | None:
    """A checkpoint's folder or Hub id, and timm's architecture, None for transformers; None where timm knows the name.

    Raises:
        UserError: as `check_backbone`.
    """
    import timm

    name, path = str(checkpoint), Path(checkpoint)
    if path.is_file():
        path = path.parent
    if name and path.is_dir():
        source, config = str(path), path / "config.json"
        if not config.is_file():
            raise UserError(f"{path} has no config.json: give the folder of a timm or transformers model")
    elif timm.is_model(name):
        return None
    else:
        try:
            source, config = name, Path(hf_hub_download(name, "config.json"))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise UserError(
                f"no checkpoint {name!r}: give a folder, a Hub id of a timm or transformers model, or a timm name "
                f"({first_line(error)[:300]})"
            ) from error
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"the config.json of {name} is not JSON: {first_line(error)[:300]}") from error
    if not isinstance(settings, dict) or not {"architecture", "model_type"} & settings.keys():
        raise UserError(f"the config.json of {name} names no timm `architecture` and no transformers `model_type`")
    return source, settings.get("architecture")


def from_timm(model: Any, name: str, device: torch.device) -> Backbone:
    """A timm model in memory as a backbone; it is frozen."""
    from timm.data import create_transform, resolve_model_data_config

    model.requires_grad_(False).eval().to(device)
    transform: Any = create_transform(**resolve_model_data_config(model), is_training=False)
    label_names = model.pretrained_cfg.get("label_names")
    if isinstance(label_names, dict):
        label_names = [label_names[str(i)] for i in range(len(label_names))]

    def features(images: Tensor) -> Tensor:
        return model.forward_head(model.forward_features(images), pre_logits=True)

    return Backbone(
        name,
        features,
        model if model.num_classes else None,
        transform,
        str(transform),
        _weights_sha256(model),
        _architecture_sha256(model, repr([(name, _plain_settings(part)) for name, part in model.named_modules()])),
        tuple(label_names) if label_names and len(label_names) == model.num_classes else None,
        model.num_classes,
        device,
    )


@dataclasses.dataclass(frozen=True)
class _Processor:
    """A transformers image processor as a transform."""

    processor: Callable

    def __call__(self, image: Image.Image) -> Tensor:
        return self.processor(image, return_tensors="pt")["pixel_values"][0]


def _from_transformers(source: str, name: str, device: torch.device) -> Backbone:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

    try:
        config: Any = AutoConfig.from_pretrained(source)
        has_head = any(a.endswith("ForImageClassification") for a in config.architectures or [])
        auto = AutoModelForImageClassification if has_head else AutoModel
        model, info = auto.from_pretrained(source, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(source)
    except Exception as error:
        raise UserError(f"transformers cannot load {name}: {first_line(error)[:300]}") from error
    untrained = set(info["missing_keys"])  # random, so neither used nor hashed
    missing = sorted(key for key in untrained if has_head or "pooler" not in key)
    if missing:
        raise UserError(f"the weights of {name} lack {len(missing)} of its architecture's, {missing[0]} among them")
    model.requires_grad_(False).eval().to(device)
    num_classes = config.num_labels if has_head else 0
    labels = [config.id2label[i] for i in range(num_classes)] if has_head else []
    return Backbone(
        name,
        _transformers_features(model, num_classes, use_pooler=not untrained),
        (lambda images: model(pixel_values=images).logits) if has_head else None,
        _Processor(processor),
        processor.to_json_string(),
        _weights_sha256(model, untrained),
        _architecture_sha256(model, config.to_json_string()),
        tuple(labels) if labels and labels[0] != "LABEL_0" else None,
        num_classes,
        device,
    )


def _transformers_features(model: Any, num_classes: int, use_pooler: bool) -> Callable[[Tensor], Tensor]:
    """What the head sees; without one, the pooler's output, the class token, or the mean over all tokens or places.

    Args:
        model: in eval mode.
        num_classes: of its head, 0 without.
        use_pooler: whether it has been trained.
    """
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and num_classes and m.out_features == num_classes]
    if len(heads) == 1:
        return _input_of(heads[0], model)
    base = getattr(model, model.base_model_prefix, model)
    if hasattr(base.config, "mask_ratio"):  # a masked autoencoder would see some of the patches, chosen at random
        base.config.mask_ratio = 0.0
    has_class_token = any(name.endswith(("cls_token", "class_embedding")) for name, _ in base.named_parameters())

    def features(images: Tensor) -> Tensor:
        if hasattr(base, "get_image_features"):  # a model of images and texts
            output = base.get_image_features(pixel_values=images)
            return output if isinstance(output, Tensor) else output.pooler_output
        output = base(pixel_values=images)
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None and use_pooler:
            return pooled.flatten(1)
        states = output.last_hidden_state
        if states.ndim == 4:
            return states.mean((2, 3))
        return states[:, 0] if has_class_token else states.mean(1)

    return features


def _input_of(head: nn.Linear, model: nn.Module) -> Callable[[Tensor], Tensor]:
    def features(images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        with head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            model(pixel_values=images)
        return seen[0].flatten(1)

    return features


def imagenet_ids(backbone: Backbone) -> list[int]:
    """The ImageNet-1k id of each class of the head.

    The names decide, as wnids, as `imagenet-1k`'s names, or as WordNet's ("tench, Tinca tinca") in the order of their
    wnids; without names, 1000 classes are ImageNet-1k's and 100 are imagenet-100's, in the order of their wnids.

    Raises:
        UserError: there is no head, or it is no ImageNet classifier.
    """
    if backbone.logits is None:
        raise UserError(f"{backbone.name} has no classification head, which this benchmark needs")
    imagenet = load_class_names("imagenet-1k")
    for known in (imagenet.wnids, imagenet.names):
        ids = {name: i for i, name in enumerate(known)}
        if backbone.class_names and all(name in ids for name in backbone.class_names):
            return [ids[name] for name in backbone.class_names]
    names = backbone.class_names
    if backbone.num_classes == len(imagenet) and (names is None or _are_wordnets(names)):
        return list(range(len(imagenet)))
    if backbone.num_classes == 100 and backbone.class_names is None:
        return [imagenet.wnids.index(wnid) for wnid in load_class_names("imagenet-100").wnids]
    raise UserError(
        f"{backbone.name} has {backbone.num_classes} classes that are not ImageNet's; this benchmark needs a "
        "classifier of ImageNet-1k's classes or of some of them"
    )


def _are_wordnets(names: Sequence[str]) -> bool:
    """Whether 1000 names are WordNet's of ImageNet-1k in order, but for a few that are spelled in another way."""
    from timm.data import ImageNetInfo

    def synonyms(name: str) -> set[str]:
        return {synonym.strip().lower() for synonym in name.replace("_", " ").split(",")}

    descriptions = ImageNetInfo("imagenet-1k").label_descriptions()
    known = [bool(synonyms(name) & synonyms(own)) for name, own in zip(names, descriptions, strict=True)]
    return sum(known) >= 0.9 * len(known)


def _weights_sha256(model: nn.Module, without: Collection[str] = ()) -> str:
    digest = hashlib.sha256()
    for name, value in sorted((name, value) for name, value in model.state_dict().items() if name not in without):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _architecture_sha256(model: nn.Module, settings: str) -> str:
    return hashlib.sha256(f"{model!r}\n{settings}".encode()).hexdigest()


def _plain_settings(module: nn.Module) -> dict[str, bool | int | float | str]:
    """A timm module's own settings, of which its repr leaves out some: a ViT's `global_pool`, its number of heads."""
    return {name: value for name, value in sorted(vars(module).items()) if isinstance(value, bool | int | float | str)}
