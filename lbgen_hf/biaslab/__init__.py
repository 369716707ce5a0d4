"""biaslab: a small world whose bias is known. Scenes, their captions, and the models trained on them."""

from pathlib import Path
from typing import Any

MODELS = Path(__file__).parent / "models"
"""The shipped `lbgen-tiny`: `pipeline/`, `clip/`, `judge/`, `second_judge/`, `quality/`, `lora/`."""

BASE_TRAINING_SCENES: dict[str, Any] = {"num_scenes": 100_000, "bias": 0.35, "seed": 2}
"""The scenes that its base model learned bare class names from, as `sample_scenes` takes them. Guidance sharpens their
bias: about six of ten images of a class name are on its own background."""
