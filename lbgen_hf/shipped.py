"""What the name "lbgen-tiny" stands for: the small models inside the package, and what goes with a model by default.

The name is understood wherever a pipeline, a LoRA, a CLIP or a quality scorer is asked for.
"""

import dataclasses
from pathlib import Path

from lbgen_hf.biaslab import MODELS

LBGEN_TINY = "lbgen-tiny"
PARTS = ("pipeline", "lora", "clip", "quality", "judge")


def resolve(name: str | Path, part: str) -> str:
    """The shipped folder of a part where the name is lbgen-tiny; any other name as it is.

    Args:
        name: what the user asked for.
        part: one of `PARTS`.
    """
    return str(MODELS / part) if str(name) == LBGEN_TINY else str(name)


@dataclasses.dataclass(frozen=True)
class Companions:
    """What goes with a base model where the user asks for nothing else.

    Attributes:
        clip_model: as `ClipFeatures.from_pretrained` takes it.
        quality_scorer: as `load_quality_scorer` takes it.
        lora: as `LbGenPipeline.load_lora_weights` takes it; None where none is known.
        training_config: its file in `training/configs/`; None for the defaults of `LbGenConfig`.
    """

    clip_model: str
    quality_scorer: str
    lora: str | None = None
    training_config: str | None = None


def companions_of(model: str) -> Companions:
    """lbgen-tiny's own for lbgen-tiny; the paper's CLIP ViT-L/14 and Q-ALIGN for every other base model."""
    if model != LBGEN_TINY:
        return Companions("ViT-L-14", "qalign")
    has_lora = any((MODELS / "lora").glob("*.safetensors"))
    return Companions(LBGEN_TINY, LBGEN_TINY, LBGEN_TINY if has_lora else None, "tiny.yaml")
