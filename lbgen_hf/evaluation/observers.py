"""What biaslab's images are judged by: the shipped judge, CLIP and quality scorer, or others of their kind."""

from collections.abc import Callable
from pathlib import Path

from lbgen_hf.biaslab import MODELS
from lbgen_hf.biaslab.judge import Judge
from lbgen_hf.errors import UserError
from lbgen_hf.rewards.clip_features import ClipFeatures
from lbgen_hf.rewards.quality.tiny import TinyScorer


def load_observers(models: Path = MODELS, judge: str = "judge") -> dict[str, Callable]:
    """The observers of `lbgen_hf.biaslab.measure.judge_images`, by its arguments' names.

    Args:
        models: the folder of judge/, second_judge/, clip/ and quality/.
        judge: the judge's folder there.

    Raises:
        UserError: one of them is not there.
    """
    for name in ("clip", judge, "quality"):  # a missing folder would be taken for a name on the Hub
        if not (models / name).is_dir():
            raise UserError(f"{models} holds no {name}; give the folder of the judges, clip/ and quality/")
    clip = ClipFeatures.from_pretrained(models / "clip")
    return {
        "judge": Judge.from_pretrained(models / judge).eval(),
        "image_features": clip.image_features,
        "text_features": clip.text_features,
        "score": TinyScorer.from_pretrained(models / "quality").freeze(),
    }
