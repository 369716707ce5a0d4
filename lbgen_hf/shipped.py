"""What the name "lbgen-tiny" stands for: the small models inside the package, and what goes with a model by default.

The name is understood wherever a pipeline, a LoRA, a CLIP or a quality scorer is asked for. No other module compares a
model's name with it: what is particular to the shipped model is in its `Companions`.
"""

import dataclasses
from pathlib import Path

from lbgen_hf.biaslab import MODELS

LBGEN_TINY = "lbgen-tiny"
PARTS = ("pipeline", "lora", "clip", "quality", "judge", "second_judge")
# Its LoRAs, fine-tuned with the paper's losses and with context-swap alignment: the folder, and what tables call it.
_LORAS = {LBGEN_TINY: ("lora", "lbGen"), "lbgen-tiny-context-swap": ("lora_context_swap", "context swap")}


def resolve(name: str | Path, part: str) -> str:
    """The shipped folder of a part where the name is a shipped model's or LoRA's; any other name as it is.

    Args:
        name: what the user asked for.
        part: one of `PARTS`.
    """
    folders = {lora: folder for lora, (folder, _) in _LORAS.items()} if part == "lora" else {LBGEN_TINY: part}
    return str(MODELS / folders[str(name)]) if str(name) in folders else str(name)


@dataclasses.dataclass(frozen=True)
class Companions:
    """What goes with a base model where the user asks for nothing else.

    Attributes:
        clip_model: as `ClipFeatures.from_pretrained` takes it.
        quality_scorer: as `load_quality_scorer` takes it.
        lora: as `LbGenPipeline.load_lora_weights` takes it; None where none is known.
        loras: every LoRA that is shipped with the model, by what tables call it.
        training_config: its file in `training/configs/`; None for the defaults of `LbGenConfig`.
        license: of a shipped model; None where the model's own card says it.
        shipped: whether the models are in the package, so that nothing is downloaded.
    """

    clip_model: str
    quality_scorer: str
    lora: str | None = None
    loras: dict[str, str] = dataclasses.field(default_factory=dict)
    training_config: str | None = None
    license: str | None = None
    shipped: bool = False


def companions_of(model: str) -> Companions:
    """lbgen-tiny's own for lbgen-tiny; the paper's CLIP ViT-L/14 and Q-ALIGN for every other base model."""
    if model != LBGEN_TINY:
        return Companions("ViT-L-14", "qalign")
    loras = {title: lora for lora, (folder, title) in _LORAS.items() if any((MODELS / folder).glob("*.safetensors"))}
    return Companions(
        clip_model=LBGEN_TINY,
        quality_scorer=LBGEN_TINY,
        lora=LBGEN_TINY if LBGEN_TINY in loras.values() else None,
        loras=loras,
        training_config="tiny.yaml",
        license="apache-2.0",
        shipped=True,
    )
