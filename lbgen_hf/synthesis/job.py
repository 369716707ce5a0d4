"""From what a user asks for to settings and a drawer: the model is loaded, class names and gates are resolved."""

import dataclasses
from typing import Any

import torch

from lbgen_hf.class_names import ClassNames, load_class_names
from lbgen_hf.devices import DTYPES, pick_device
from lbgen_hf.errors import UserError
from lbgen_hf.pipeline_lbgen import LBGEN_TINY, LbGenPipeline
from lbgen_hf.synthesis.draw import PipelineDrawer, Scorer, load_pipeline
from lbgen_hf.synthesis.settings import Settings


@dataclasses.dataclass(frozen=True)
class Job:
    """What to draw, and on what. Small and picklable, so that any process can prepare it for itself.

    Attributes:
        model: "lbgen-tiny", a folder, or a Hub id.
        lora: an adapter to put on it.
        classes: a class list, as `load_class_names` takes it; default: the model's own.
        device: default: the fastest there is.
        dtype: float32, float16 or bfloat16; default: float16 on CUDA, else float32.
        compile_unet: with `torch.compile`.
        options: further fields of `Settings`.
    """

    model: str = LBGEN_TINY
    lora: str | None = None
    classes: str | None = None
    device: str | None = None
    dtype: str | None = None
    compile_unet: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def prepare(self) -> tuple[Settings, PipelineDrawer]:
        """Load everything.

        Raises:
            UserError: the model, the adapter, the class list, or an option is missing or wrong.
        """
        names = load_class_names(self.classes) if self.classes else None
        device = pick_device(self.device)
        dtype = self.dtype or ("float16" if device.type == "cuda" else "float32")
        if dtype not in DTYPES:
            raise UserError(f"unknown dtype {dtype!r}; choose from {', '.join(DTYPES)}")
        if dtype == "float16" and device.type == "cpu":
            raise UserError("float16 is too slow and imprecise on a CPU; give --dtype float32 or bfloat16")
        pipe, weights = load_pipeline(self.model, self.lora, device, DTYPES[dtype], self.compile_unet)
        names = names or _own_classes(pipe)
        settings = Settings(
            model=self.model,
            lora=self.lora,
            classes=names.names,
            wnids=names.wnids if any(names.wnids) else None,
            dtype=dtype,
            **weights,
            **self.options,
        )
        return settings, PipelineDrawer(pipe, settings, _load_gates(settings, device))


def _own_classes(pipe: LbGenPipeline) -> ClassNames:
    wnids = pipe.class_wnids or [None] * len(pipe.class_labels)
    return ClassNames(tuple(pipe.class_labels), tuple(wnids))


def _load_gates(settings: Settings, device: torch.device) -> dict[str, tuple[Scorer, float]]:
    """The scorers of the gates that the settings ask for: the shipped ones for lbgen-tiny, else the paper's."""
    gates: dict[str, tuple[Scorer, float]] = {}
    if settings.min_clip_score is not None:
        gates["clip_score"] = (_clip_scorer(settings, device), settings.min_clip_score)
    if settings.min_quality is not None:
        from lbgen_hf.rewards.quality import load_quality_scorer

        score = load_quality_scorer(LBGEN_TINY if settings.model == LBGEN_TINY else "qalign", device=device)
        gates["quality"] = (lambda images, rows: score(images), settings.min_quality)
    return gates


def _clip_scorer(settings: Settings, device: torch.device) -> Scorer:
    """cos(image, "photo of c"), 1 - L_in of the paper's eq. 6."""
    from lbgen_hf.biaslab import MODELS
    from lbgen_hf.rewards.clip_features import ClipFeatures

    model = (str(MODELS / "clip"), None) if settings.model == LBGEN_TINY else ("ViT-L-14", "openai")
    clip = ClipFeatures.from_pretrained(*model, device=device)

    def score(images: torch.Tensor, rows: list) -> torch.Tensor:
        texts = clip.text_features([f"photo of {settings.classes[row.class_id]}" for row in rows])
        return (clip.image_features(images) * texts).sum(-1)

    return score
