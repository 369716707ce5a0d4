"""biaslab: a small world whose bias is known. Scenes, their captions, and the models trained on them."""

from pathlib import Path

MODELS = Path(__file__).parent / "models"
"""The shipped `lbgen-tiny`: `pipeline/`, `clip/`, `judge/`, `second_judge/`, `quality/`, `lora/`."""
