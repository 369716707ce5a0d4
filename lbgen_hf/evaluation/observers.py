"""What biaslab's images are judged by: the shipped judge, CLIP and quality scorer, or others of their kind."""

from collections.abc import Callable
from pathlib import Path

from lbgen_hf.biaslab import MODELS
from lbgen_hf.biaslab.judge import Judge
from lbgen_hf.rewards.clip_features import ClipFeatures
from lbgen_hf.rewards.quality.tiny import TinyScorer


def load_observers(models: Path = MODELS, judge: str = "judge") -> dict[str, Callable]:
    """The observers of `lbgen_hf.biaslab.measure.judge_images`, by its arguments' names.

    Args:
        models: the folder of judge/, second_judge/, clip/ and quality/.
        judge: the judge's folder there.
    """
    clip = ClipFeatures.from_pretrained(models / "clip")
    return {
        "judge": Judge.from_pretrained(models / judge).eval(),
        "image_features": clip.image_features,
        "text_features": clip.text_features,
        "score": TinyScorer.from_pretrained(models / "quality").freeze(),
    }
