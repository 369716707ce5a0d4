"""Two datasets of the same classes, paired by class: what got better, and where."""

import dataclasses

import numpy as np

from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.audit.collecting import LEAST_OF_CLASS, Sample
from lbgen_hf.evaluation.audit.findings import Finding, examine_sample


@dataclasses.dataclass(frozen=True)
class Change:
    """A score in a dataset and in the one that it is compared with.

    Attributes:
        name: the attribute's, or the class's.
        score: in the dataset.
        other: in the other.
        change: score - other; below zero is less bias than the other has.
        interval: 95 % of the change, from the bootstraps of both.
    """

    name: str
    score: float
    other: float
    change: float
    interval: tuple[float, float]

    @property
    def word(self) -> str:
        """Whether the dataset is better or worse than the other; "same" where the interval holds zero."""
        low, high = self.interval
        return "better" if high < 0 else "worse" if low > 0 else "same"

    def as_json(self) -> dict:
        return {**dataclasses.asdict(self), "interval": list(self.interval), "verdict": self.word}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A dataset beside another of the same classes, equally many images of each class in both.

    Attributes:
        other: the name of the other dataset.
        class_names: those that both have.
        images_per_class: class name to the number of images taken of each set.
        attributes: one change an attribute.
        classes: attribute name to one change a class, in the order of `class_names`; where both sets have the class.
    """

    other: str
    class_names: list[str]
    images_per_class: dict[str, int]
    attributes: list[Change]
    classes: dict[str, list[Change]]

    def as_json(self) -> dict:
        return {
            "against": self.other,
            "images_per_class": self.images_per_class,
            "attributes": [change.as_json() for change in self.attributes],
            "classes": {name: [change.as_json() for change in changes] for name, changes in self.classes.items()},
        }


def common_classes(name: str, class_names: list[str], other: str, other_class_names: list[str]) -> list[str]:
    """The classes that two datasets have, in the order of the first.

    Raises:
        UserError: fewer than two.
    """
    others = set(other_class_names)
    common = [class_name for class_name in class_names if class_name in others]
    if len(common) < 2:
        found = "no class" if not common else f"only the class {common[0]!r}"
        raise UserError(
            f"{name} and {other} have {found} in common; their classes begin with "
            f"{', '.join(class_names[:3])} and {', '.join(other_class_names[:3])}"
        )
    return common


def pair(a: Sample, b: Sample, seed: int = 0) -> tuple[Sample, Sample]:
    """The classes that both have, and of each class as many images of both: a random choice of the larger.

    Raises:
        UserError: fewer than two classes are in both, or one has fewer than 5 images.
    """
    common = common_classes(a.name, a.class_names, b.name, b.class_names)
    rng = np.random.default_rng(seed)
    rows: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    labels = []
    for label, name in enumerate(common):
        of_class = [np.flatnonzero(sample.labels == sample.class_names.index(name)) for sample in (a, b)]
        size = min(map(len, of_class))
        if size < LEAST_OF_CLASS:
            raise UserError(f"class {name!r} has fewer than {LEAST_OF_CLASS} images in {a.name} or {b.name}")
        for chosen, found in zip(rows, of_class, strict=True):
            chosen.append(rng.permutation(found)[:size])
        labels.append(np.full(size, label))
    paired = [
        sample.select(np.concatenate(chosen), common, np.concatenate(labels))
        for sample, chosen in zip((a, b), rows, strict=True)
    ]
    return paired[0], paired[1]


def compare(a: Sample, b: Sample, *, resamples: int = 999, seed: int = 0) -> Comparison:
    """Score both datasets on the classes that they share, and take the differences; omit what either lacks.

    Args:
        a, b: the dataset, and the one that it is compared with.
        resamples, seed: of the shuffles and bootstraps.
    """
    a, b = pair(a, b, seed)
    examined: list[dict[str, Finding]] = []
    for place, sample in enumerate((a, b)):
        # Another seed for each: their bootstraps are independent.
        found = examine_sample(sample, resamples=resamples, seed=seed + place)
        examined.append({finding.attribute.name: finding for finding in found})
    changes, classes = [], {}
    for name in [name for name in examined[0] if name in examined[1]]:
        x, y = examined[0][name].relation, examined[1][name].relation
        changes.append(_change(name, x.score, y.score, x.replicates - y.replicates))
        replicates = x.class_replicates - y.class_replicates
        classes[name] = [
            _change(class_name, x.classes[i], y.classes[i], replicates[:, i])
            for i, class_name in enumerate(a.class_names)
            if np.isfinite(x.classes[i] - y.classes[i])
        ]
    counts = np.bincount(a.labels, minlength=len(a.class_names))
    per_class = dict(zip(a.class_names, counts.tolist(), strict=True))
    return Comparison(b.name, a.class_names, per_class, changes, classes)


def _change(name: str, score: float, other: float, replicates: np.ndarray) -> Change:
    low, high = np.quantile(replicates, [0.025, 0.975])
    return Change(name, float(score), float(other), float(score - other), (float(low), float(high)))
