"""Scores of cells: from raw outcomes, one an image, to estimates with bootstrap replicates."""

import dataclasses

import numpy as np

from lbgen_hf.evaluation.bias import background_gap_estimates, context_bias_estimates, texture_inclination_estimates
from lbgen_hf.evaluation.statistics import Estimate, accuracy, mean


@dataclasses.dataclass(frozen=True)
class ScoreInfo:
    """How a report shows a score.

    Attributes:
        title: of its column.
        unit: % or points.
        better: which way is better: "higher" or "lower".
        detail: shown in `report.json` and the details, not in the main tables.
    """

    title: str
    unit: str = "%"
    better: str = "higher"
    detail: bool = False


INFO = {
    "accuracy": ScoreInfo("top-1"),
    "knn_accuracy": ScoreInfo("top-1 by nearest neighbours"),
    "few_shot_accuracy": ScoreInfo("top-1"),
    "texture_inclination": ScoreInfo("texture inclination", better="lower"),
    "cb_avg": ScoreInfo("CB avg (k = 1, 2, 3)"),
    "cb_12": ScoreInfo("CB (k = 1, 2)"),
    "cb_macro": ScoreInfo("CB, mean over classes"),
    "background_gap": ScoreInfo("background gap", "points", "lower"),
    "relative_gap": ScoreInfo("gap / originals", better="lower"),
    "control_gap": ScoreInfo("control: originals - recomposed", "points", "lower"),
    "accuracy_original": ScoreInfo("originals", detail=True),
    "accuracy_mixed_same": ScoreInfo("mixed-same", detail=True),
    "accuracy_mixed_rand": ScoreInfo("mixed-rand", detail=True),
    **{f"accuracy_p{k}": ScoreInfo(f"P_{k}", detail=True) for k in range(4)},
}


@dataclasses.dataclass(frozen=True)
class Scored:
    """The scores of a cell, and the counts that belong beside them."""

    estimates: dict[str, Estimate]
    counts: dict[str, int]


def scores_of(kind: str, data: dict, *, n_resamples: int = 1000, seed: int = 0) -> Scored:
    """Score a cell's data; cells of the same images are resampled alike, so that differences are paired.

    A score that the outcomes leave undefined, as a ratio to no right answers, is NaN.
    """
    options = {"n_resamples": n_resamples, "seed": seed}
    if kind == "accuracy":
        return Scored({"accuracy": accuracy(data["correct"], **options)}, {"n": len(data["correct"])})
    if kind == "transfer":
        estimates = {
            "accuracy": accuracy(data["correct"], **options),
            "knn_accuracy": accuracy(data["knn_correct"], **options),
        }
        return Scored(estimates, {"n": len(data["correct"])})
    if kind == "few_shot":
        subsets = [accuracy(correct, **options) for correct in data["correct"]]
        return Scored({"few_shot_accuracy": mean(subsets)}, {"n": len(data["correct"][0]), "subsets": len(subsets)})
    if kind == "texture_inclination":
        return Scored(*texture_inclination_estimates(**data, **options))
    if kind == "context_bias":
        return Scored(*context_bias_estimates(**data, **options))
    return _background_scores(data, **options)


def _background_scores(data: dict, **options) -> Scored:
    control = data.get("control_correct")
    columns = {name: values for name, values in data.items() if name != "control_correct"}
    estimates, counts = background_gap_estimates(**columns, **options)
    if control is not None:  # of the same images as the originals, so the difference is paired
        is_original = np.array(columns["partitions"]) == "original"
        original = (np.array(columns["predictions"]) == np.array(columns["references"]))[is_original]
        estimates["control_gap"] = accuracy(original, **options) - accuracy(control, **options)
        counts["n_recomposed"] = len(control)
    return Scored(estimates, counts)
