"""Scorers by name."""

import torch

from lbgen_hf.biaslab import MODELS
from lbgen_hf.errors import UserError
from lbgen_hf.quality.scorer import QualityScorer
from lbgen_hf.quality.tiny import TinyScorer

NAMES = {
    "lbgen-tiny": "shipped, for 64x64 biaslab pictures",
}


def load_quality_scorer(
    name: str, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> QualityScorer:
    """Load a frozen scorer, differentiable with respect to the images.

    Args:
        name: `lbgen-tiny`.
        device: where its weights go; default the CPU. Images may be elsewhere.
        dtype: of its weights; default float32.

    Raises:
        UserError: unknown name.
    """
    if name != "lbgen-tiny":
        raise UserError(f"unknown quality scorer {name!r}; choose from {', '.join(NAMES)}")
    return TinyScorer.from_pretrained(MODELS / "quality").to(device, dtype).freeze()
