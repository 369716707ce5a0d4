"""Figures on pictures that the run never trains on, and the rule that chooses a step by them."""

import torch
from torch import Tensor


def distance_within_class(features: Tensor, class_ids: Tensor) -> float:
    """Mean over classes of the mean of 1 - cos over pairs of one class, for L2-normalised features (B, D)."""
    distances = []
    for class_id in class_ids.unique():
        own = features[class_ids == class_id].double()
        n = len(own)
        distances.append(1 - (own.sum(0).square().sum() - n) / (n * (n - 1)))
    return torch.stack(distances).mean().item()


def choose_step(rows: list[dict]) -> int:
    """Which step's LoRA to keep, from held-out figures alone.

    The best aligned with its descriptions (mean cosine to "photo of {name}") among the steps where, against step 0,
    class accuracy fell by at most 0.02, quality by at most 0.1, and distance within a class to no less than 0.7 of it.

    Args:
        rows: with step, alignment, class_accuracy, distance_within_class, and quality where there is a scorer.
    """
    base = rows[0]

    def holds(row: dict) -> bool:
        return (
            row["class_accuracy"] >= base["class_accuracy"] - 0.02
            and row["distance_within_class"] >= 0.7 * base["distance_within_class"]
            and row.get("quality", 0) >= base.get("quality", 0) - 0.1
        )

    return max((row for row in rows if holds(row)), key=lambda row: row["alignment"])["step"]
