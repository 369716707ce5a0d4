"""What an audit finds: how each attribute is related to the label, and which classes it gives away."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from lbgen_hf.evaluation.audit.attributes import Attribute
from lbgen_hf.evaluation.audit.collecting import LEAST_OF_CLASS, Sample
from lbgen_hf.evaluation.audit.information import (
    Relation,
    count_table,
    entropy_given_label,
    equiprobable_cells,
    holm,
    num_cells,
    relate,
)
from lbgen_hf.evaluation.audit.model_features import PROBE, predict_from_background

FALSE_ALARMS = 0.02  # the chance that any attribute of an unbiased dataset is called biased
COLLAPSED = 0.1  # nats of an attribute given the label, below which it does not vary
_STRENGTHS = ((0.2, "strong"), (0.05, "clear"), (0.0, "weak"))


@dataclasses.dataclass(frozen=True)
class Finding:
    """One attribute of one dataset.

    Attributes:
        attribute: what was measured.
        relation: the score, its bootstrap and its null; a class without a value has NaN.
        entropy_given_label: what of the attribute varies within a class, in nats at the attribute's resolution.
        cells: (n,) the cell of each image; -1 where the image has no such attribute.
    """

    attribute: Attribute
    relation: Relation
    entropy_given_label: float
    cells: np.ndarray

    @property
    def num_images(self) -> int:
        return int((self.cells >= 0).sum())

    @property
    def interval(self) -> tuple[float, float]:
        return self.relation.interval

    @property
    def chance(self) -> float:
        """The score that 95 % of shuffled labels stay below."""
        return float(np.quantile(self.relation.null, 0.95))

    def as_json(self) -> dict:
        """The finding as audit.json gives it."""
        return {
            "name": self.attribute.name,
            "axis": self.attribute.axis,
            "score": self.relation.score,
            "interval": list(self.interval),
            "p_value": self.relation.p_value,
            "entropy_given_label": self.entropy_given_label,
        }

    def typical_value(self, labels: np.ndarray, class_id: int) -> str | None:
        """The name of the value that gives a class away; None where values have no names."""
        examples, _ = self.typical_images(labels, class_id)
        names = self.attribute.value_names
        return names[self.cells[examples[0]]] if names and len(examples) else None

    def typical_images(self, labels: np.ndarray, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Images of a class that the attribute gives away, and images of the class that it does not, best first."""
        of_class = np.flatnonzero((labels == class_id) & (self.cells >= 0))
        cells = np.arange(self.cells.max() + 1)
        inside = (self.cells[of_class][:, None] == cells).mean(0)
        outside = (self.cells[self.cells >= 0][:, None] == cells).mean(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            telling = np.where(inside > 0, inside * np.log(inside / outside), -np.inf)
            surprise = np.where(inside > 0, np.log(inside / outside), -np.inf)
        typical = int(telling.argmax())
        others = of_class[self.cells[of_class] != typical]
        return of_class[self.cells[of_class] == typical], others[
            np.argsort(surprise[self.cells[others]], kind="stable")
        ]


def examine(
    attribute: Attribute,
    values: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    resamples: int = 999,
    seed: int = 0,
) -> Finding | None:
    """Score one attribute.

    Args:
        attribute: what it is.
        values: (n, d), NaN where an image has none.
        labels: (n,) in 0..num_classes - 1.
        num_classes: C.
        resamples: shuffles and bootstrap samples.
        seed: of both.

    Returns:
        None where fewer than two classes have `LEAST_OF_CLASS` images with the attribute: a few stray images have the
        same relation to the label however the labels are shuffled.
    """
    has = np.isfinite(values).all(1)
    present, of_present, counts = np.unique(labels[has], return_inverse=True, return_counts=True)
    if (counts >= LEAST_OF_CLASS).sum() < 2:
        return None
    scaled = values[has].astype(np.float64) / np.array(attribute.steps)
    if attribute.categorical:
        found = scaled[:, 0].astype(np.int64)
    else:
        found = equiprobable_cells(scaled, num_cells(len(scaled), len(present)))
    relation = relate(count_table(of_present, found, len(present)), resamples, seed)
    if len(present) < num_classes:
        relation = dataclasses.replace(
            relation,
            classes=_spread(relation.classes, present, num_classes),
            class_replicates=_spread(relation.class_replicates, present, num_classes),
        )
    cells = np.full(len(labels), -1)
    cells[has] = found
    kept = entropy_given_label(of_present, np.floor(scaled), len(present))
    return Finding(attribute, relation, kept, cells)


def _spread(values: np.ndarray, present: np.ndarray, num_classes: int) -> np.ndarray:
    """Values (..., P) of the classes that are present among all (..., C), NaN elsewhere."""
    out = np.full((*values.shape[:-1], num_classes), np.nan)
    out[..., present] = values
    return out


def examine_all(
    attributes: Mapping[str, Attribute],
    values: Mapping[str, np.ndarray],
    labels: np.ndarray,
    num_classes: int,
    *,
    resamples: int = 999,
    seed: int = 0,
) -> list[Finding]:
    """Score every attribute that two classes have often enough, in the order of `attributes`.

    There are at least so many shuffles that `verdicts` can tell one attribute among all from an accident.
    """
    resamples = max(resamples, math.ceil(len(attributes) / FALSE_ALARMS))
    findings = (
        examine(attribute, values[name], labels, num_classes, resamples=resamples, seed=seed)
        for name, attribute in attributes.items()
        if name in values
    )
    return [finding for finding in findings if finding is not None]


def examine_sample(sample: Sample, *, resamples: int = 999, seed: int = 0) -> list[Finding]:
    """Score every attribute of a sample; a probe on the background's features is one where the sample has features."""
    attributes, values = sample.attributes, sample.values
    if sample.background is not None:
        named = dataclasses.replace(PROBE, value_names=tuple(sample.class_names))
        attributes = {**attributes, PROBE.name: named}
        values = {**values, PROBE.name: predict_from_background(sample, seed)}
    return examine_all(attributes, values, sample.labels, len(sample.class_names), resamples=resamples, seed=seed)


def verdicts(findings: list[Finding]) -> list[str]:
    """A word for each finding: strong, clear or weak where it is no accident; else none, or constant.

    It is no accident where the p-value, corrected by Holm's method for the number of attributes, is at most 0.02 and
    the interval lies above zero.
    """
    corrected = holm(np.array([finding.relation.p_value for finding in findings]))
    words = []
    for finding, p_value in zip(findings, corrected, strict=True):
        if p_value <= FALSE_ALARMS and finding.interval[0] > 0:
            words.append(next(word for least, word in _STRENGTHS if finding.relation.score >= least))
        else:
            words.append("constant" if finding.entropy_given_label < COLLAPSED else "none")
    return words
