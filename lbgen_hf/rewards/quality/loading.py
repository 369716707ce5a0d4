"""Scorers by name."""

import importlib.util
from typing import Any

import torch

from lbgen_hf.devices import pick_device
from lbgen_hf.errors import UserError, first_line
from lbgen_hf.hub import loading
from lbgen_hf.rewards.quality import pyiqa_metrics, qalign
from lbgen_hf.rewards.quality.scorer import QualityScorer
from lbgen_hf.shipped import LBGEN_TINY, resolve

NAMES = {
    LBGEN_TINY: "shipped, for 64x64 biaslab images",
    "qalign": "the paper's: Q-ALIGN, 8 billion weights; needs pyiqa, whose licence is non-commercial",
    "vlm:<repo>": "any image-text-to-text model of the Hub, asked as Q-ALIGN is",
    "pyiqa:<metric>": "a differentiable metric of pyiqa without reference: clipiqa, musiq, topiq_nr, ...",
}


def load_quality_scorer(
    name: str,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    bits: int | None = None,
    gradient_checkpointing: bool = False,
) -> QualityScorer:
    """Load a frozen scorer, differentiable with respect to the images.

    Args:
        name: see `NAMES`.
        device: where its weights go; default the CPU. Images may be elsewhere.
        dtype: of its weights; default bfloat16 for `qalign` and `vlm:` on an accelerator, else float32.
        bits: 8 or 4 to quantise the linear layers of `qalign` and `vlm:` with bitsandbytes.
        gradient_checkpointing: of `qalign` and `vlm:`, for less memory in the backward pass and more time.

    Raises:
        UserError: unknown name, missing extra, weights that cannot be loaded, options that the scorer does not have.
    """
    family, rest = check_scorer(name)
    device = pick_device(device or "cpu")
    large = family in ("qalign", "vlm")
    if not large and (bits or gradient_checkpointing):
        raise UserError(f"{name} is small: bits and gradient checkpointing are for qalign and vlm:<repo>")
    try:
        with loading(_source(family, rest), f"weights of the scorer {name}"):
            if not large:
                return _load_network(family, rest).to(device, dtype).freeze()
            dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
            options = {"dtype": dtype, **_quantisation(bits, device, dtype)}
            scorer = _load_language_model(family, rest, gradient_checkpointing=gradient_checkpointing, **options)
            return (scorer if bits else scorer.to(device)).freeze()
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"cannot load the scorer {name}: {first_line(error)}") from error


def check_scorer(name: str) -> tuple[str, str]:
    """The family and the rest of a scorer's name, "vlm" and "user/repo", checked without loading anything.

    Raises:
        UserError: unknown name.
    """
    family, _, rest = str(name).partition(":")
    if name not in (LBGEN_TINY, "qalign") and not (family in ("vlm", "pyiqa") and rest):
        raise UserError(f"unknown quality scorer {name!r}; choose from {', '.join(NAMES)}")
    return family, rest


def _source(family: str, rest: str) -> str:
    """The folder or Hub repo that a scorer's weights come from."""
    shipped = resolve(LBGEN_TINY, "quality")
    return {LBGEN_TINY: shipped, "qalign": qalign.REPO, "pyiqa": pyiqa_metrics.REPO}.get(family, rest)


def _load_language_model(family: str, repo: str, **options: Any) -> QualityScorer:
    if family == "qalign":
        return qalign.QAlignScorer.from_pretrained(**options)
    from lbgen_hf.rewards.quality.vlm import VlmScorer

    return VlmScorer.from_pretrained(repo, **options)


def _load_network(family: str, metric: str) -> QualityScorer:
    if family == "pyiqa":
        return pyiqa_metrics.PyiqaScorer.from_name(metric)
    from lbgen_hf.rewards.quality.tiny import TinyScorer

    return TinyScorer.from_pretrained(resolve(LBGEN_TINY, "quality"))


def _quantisation(bits: int | None, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers needs to quantise; nothing where `bits` is None."""
    if bits is None:
        return {}
    if bits not in (4, 8):
        raise UserError(f"bits must be 8 or 4, got {bits}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{bits}-bit weights need bitsandbytes: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    four_bit = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    config = BitsAndBytesConfig(load_in_8bit=True) if bits == 8 else BitsAndBytesConfig(load_in_4bit=True, **four_bit)
    return {"quantization_config": config, "device_map": {"": device}}
