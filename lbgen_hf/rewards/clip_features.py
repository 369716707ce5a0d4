"""open_clip as a frozen feature extractor that gradients pass through: images and texts to one space."""

import difflib
import pickle
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lbgen_hf.errors import UserError, first_line
from lbgen_hf.hub import loading
from lbgen_hf.pipeline_lbgen import find_file
from lbgen_hf.shipped import resolve


def preprocess(images: Tensor, config: dict) -> Tensor:
    """open_clip's evaluation transform as a differentiable function of a batch, without a clamp.

    Args:
        images: (B, 3, H, W) in about [0, 1].
        config: open_clip's `preprocess_cfg`: size, mean, std, resize_mode "shortest" or "squash".

    Returns:
        (B, 3, h, w), resized with antialiased bicubic interpolation, cropped at the centre, normalised.

    Raises:
        UserError: a resize mode that pads.
    """
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if config["resize_mode"] == "shortest":
        scale = max(height / images.shape[-2], width / images.shape[-1])
        resized = max(height, int(images.shape[-2] * scale)), max(width, int(images.shape[-1] * scale))
    elif config["resize_mode"] == "squash":
        resized = height, width
    else:
        raise UserError(f"CLIP models with resize mode {config['resize_mode']!r} are not supported, use one that crops")
    if resized != images.shape[-2:]:
        images = F.interpolate(images, resized, mode=config["interpolation"], antialias=True, align_corners=False)
    top, left = round((resized[0] - height) / 2), round((resized[1] - width) / 2)
    images = images[..., top : top + height, left : left + width]
    mean, std = (images.new_tensor(config[key])[:, None, None] for key in ("mean", "std"))
    return (images - mean) / std


_CONFIG_FILE = "open_clip_config.json"
_OWN_WEIGHTS = ("local-dir:", "hf-hub:")


def check_clip(model: str | Path, weights: str | None) -> str:
    """open_clip's name for what `ClipFeatures.from_pretrained` is given, checked without loading weights.

    Raises:
        UserError: an unknown architecture or tag, no weights, or a folder or repo that is missing or holds no CLIP.
    """
    model = resolve(model, "clip")
    name = f"local-dir:{model}" if model and Path(model).is_dir() else model
    if name.startswith(_OWN_WEIGHTS):
        _, source = name.split(":", 1)
        with loading(source, "CLIP model"):
            if find_file(source, _CONFIG_FILE) is None:
                raise FileNotFoundError(f"there is no {_CONFIG_FILE}")
        return name
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.4)
        raise UserError(f"unknown CLIP model {name!r}; close names: {', '.join(near) or 'none'}")
    if not weights:
        raise UserError(f"CLIP model {name!r} needs weights: a tag such as 'openai', or a file")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights not in tags and not Path(weights).is_file():
        known = f"; its tags are {', '.join(tags)}" if tags else ""
        raise UserError(f"CLIP model {name!r} has no weights {weights!r}: give a tag or a file{known}")
    return name


def is_clip(model: str | Path) -> bool:
    """Whether `ClipFeatures.from_pretrained` is the one that loads a model of this name."""
    name = resolve(model, "clip")
    is_folder = (Path(name) / _CONFIG_FILE).is_file()
    return is_folder or name.startswith(_OWN_WEIGHTS) or name in open_clip.list_models()


class ClipFeatures(nn.Module):
    """A frozen CLIP model: `image_features(images)` and `text_features(texts)`, both L2-normalised, (B, feature_dim).

    Args:
        model: an open_clip model; its weights are frozen in place.
        tokenizer: texts to token ids (B, L).
    """

    def __init__(self, model: Any, tokenizer: Callable[..., Tensor]):
        super().__init__()
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._preprocess_config = open_clip.get_model_preprocess_cfg(model)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "ViT-L-14",
        weights: str | None = "openai",
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "ClipFeatures":
        """Load an open_clip model.

        Args:
            model: an open_clip architecture, or "lbgen-tiny", `hf-hub:owner/name`, `local-dir:folder`, or a folder:
                these four hold their own weights.
            weights: a pretrained tag of the architecture, or a file.
            device: where to put it.
            dtype: of the weights; resizing runs in the images' own precision.

        Raises:
            UserError: unknown model or tag, or weights that cannot be found or fetched.
        """
        name = check_clip(model, weights)
        own_weights = name.startswith(_OWN_WEIGHTS)
        # OpenAI's weights were trained with QuickGELU, which the plain architecture's name does not say.
        tag = open_clip.get_pretrained_cfg(name, weights) if weights and not own_weights else {}
        source = weights if weights and Path(weights).is_file() else name
        source = source.removeprefix("local-dir:").removeprefix("hf-hub:")
        try:
            with warnings.catch_warnings(), loading(source, "CLIP model"):
                warnings.filterwarnings("ignore", message="QuickGELU mismatch")
                if tag:  # a failed download is the Hub's error here; in create_model open_clip would log it too
                    open_clip.download_pretrained(tag)
                loaded = open_clip.create_model(
                    name,
                    pretrained=None if own_weights else weights,
                    force_quick_gelu=bool(tag.get("quick_gelu")),
                    require_pretrained=True,
                )
        except UserError:
            raise
        except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            what = f"{name!r}" if own_weights else f"{name!r} with weights {weights!r}"
            raise UserError(f"cannot load CLIP model {what}: {first_line(error)}") from error
        return cls(loaded, open_clip.get_tokenizer(name)).to(device=device, dtype=dtype)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that images are resized to."""
        size = self._preprocess_config["size"]
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def feature_dim(self) -> int:
        return self.text_features([""]).shape[-1]

    @property
    def _weight(self) -> Tensor:
        return self.model.logit_scale

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, feature_dim) of images (B, 3, H, W) in [0, 1]; gradients reach every pixel, outside too."""
        pixels = preprocess(images, self._preprocess_config)
        return F.normalize(self.model.encode_image(pixels.to(self._weight.dtype)), dim=-1)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Features (B, feature_dim) of texts."""
        tokens = self.tokenizer(list(texts)).to(self._weight.device)
        return F.normalize(self.model.encode_text(tokens), dim=-1)
