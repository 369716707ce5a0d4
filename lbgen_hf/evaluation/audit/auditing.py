"""`audit(dataset)`: how much of the label can be read from what should not matter."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lbgen_hf.checks import check_number
from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.audit.collecting import MAX_IMAGES, Sample, collect
from lbgen_hf.evaluation.audit.comparing import Comparison, common_classes, compare, pair
from lbgen_hf.evaluation.audit.findings import Finding, examine_sample, verdicts
from lbgen_hf.evaluation.audit.model_features import THUMBNAIL_SIZE, add_features, load_model
from lbgen_hf.evaluation.audit.reading import open_images
from lbgen_hf.evaluation.audit.set_classification import Told, classify_sets
from lbgen_hf.evaluation.audit.within_class import Diversity, NearDuplicates, find_near_duplicates, measure_diversity
from lbgen_hf.files import require_writable, write_atomically


@dataclasses.dataclass(frozen=True)
class Audit:
    """What was found in a dataset.

    Attributes:
        sample: the images that were measured.
        findings: one an attribute.
        pixel_distance: the distance of pixels within a class against the whole set.
        feature_distance: that of the attributes, each in units of its standard deviation, or of a model's features.
        near_duplicates: which images nearly repeat another.
        comparisons: one a dataset that it was compared with.
        sets: how well a network tells all these datasets apart, one a transformation; empty where there is one only.
    """

    sample: Sample
    findings: list[Finding]
    pixel_distance: Diversity
    feature_distance: Diversity
    near_duplicates: NearDuplicates
    comparisons: list[Comparison]
    sets: list[Told]

    @property
    def verdicts(self) -> dict[str, str]:
        """Attribute name to strong, clear, weak, none or constant (`findings.verdicts`)."""
        words = verdicts(self.findings)
        return {finding.attribute.name: word for finding, word in zip(self.findings, words, strict=True)}

    def report(self) -> None:
        """Print the findings as a table."""
        sys.stdout.write(f"{self}\n")

    def __str__(self) -> str:
        from lbgen_hf.evaluation.audit.text import as_text

        return as_text(self)

    def as_json(self) -> dict:
        """The content of audit.json."""
        sample = self.sample
        repeats = self.near_duplicates
        counts = np.bincount(sample.labels, minlength=len(sample.class_names))
        return {
            "dataset": sample.name,
            "images": len(sample),
            "rows": sample.num_rows,
            "unreadable": sample.rejected,
            "attributes": [finding.as_json() for finding in self.findings],
            "verdicts": self.verdicts,
            "chance": {finding.attribute.name: finding.chance for finding in self.findings},
            "measured_images": {finding.attribute.name: finding.num_images for finding in self.findings},
            "classes": {
                name: {
                    "images": int(counts[i]),
                    "scores": {f.attribute.name: _or_none(f.relation.classes[i]) for f in self.findings},
                    "pixel_distance": float(self.pixel_distance.classes[i]),
                    "feature_distance": float(self.feature_distance.classes[i]),
                    "near_duplicates": int(repeats.of_classes(sample.labels, len(counts))[i]),
                }
                for i, name in enumerate(sample.class_names)
            },
            "within_class": {
                "pixel_distance": self.pixel_distance.mean,
                "pixel_distance_interval": list(self.pixel_distance.interval),
                "feature_distance": self.feature_distance.mean,
                "feature_distance_interval": list(self.feature_distance.interval),
                "near_duplicates": len(repeats.pairs),
                "near_duplicates_across_classes": repeats.across_classes(sample.labels),
            },
            "against": [comparison.as_json() for comparison in self.comparisons],
            "dataset_classification": [told.as_json() for told in self.sets],
        }

    def save(self, out: str | Path) -> Path:
        """Write audit.json and the page index.html, one self-contained file.

        Returns:
            The page.

        Raises:
            UserError: the folder cannot be written.
        """
        from lbgen_hf.evaluation.audit.page import make_page

        out = Path(out)
        require_writable(out)
        write_atomically(out / "audit.json", json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n")
        write_atomically(out / "index.html", make_page(self))
        return out / "index.html"


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def audit(
    dataset: Any,
    *,
    against: Any | Sequence[Any] | None = None,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    features: str | None = None,
    words: Sequence[str] = (),
    max_images: int = MAX_IMAGES,
    resamples: int = 999,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
    on_rejected: Callable[[str], None] | None = None,
) -> Audit:
    """Measure how much of the label background, place, colour, spectrum and file give away, with nobody to annotate it.

    Args:
        dataset: an image folder, a parquet file, what `datasets.load_dataset` opens, or an object of `datasets`.
        against: one more of those, or a list of them: with the same classes, to compare with.
        split, image_column, label_column: which; default: the only one there is, or train.
        features: a model that looks at the images too: a CLIP as `ClipFeatures.from_pretrained` takes it, or a timm or
            transformers model; a probe on its features of the background and the distances of whole images are added.
        words: of which the nearest to each image is an attribute too; `features` must be a CLIP.
        max_images: measure at most so many, a uniform sample; the rest is read past.
        resamples: label shuffles and bootstrap samples an attribute; the smallest p-value is 1 / (1 + resamples).
        seed: of everything random.
        progress: told how many rows were read, of how many or None.
        on_rejected: told of each unreadable image, "name: reason"; they are in `Audit.sample.rejected` too.

    Raises:
        UserError: no images, no or several label columns, one class, fewer than 5 images of a class, no common class,
            no such model, words without a CLIP.
    """
    check_number("max_images", max_images, at_least=10, integer=True)
    check_number("resamples", resamples, at_least=99, integer=True)
    check_number("seed", seed, at_least=0, integer=True)
    others = list(against) if isinstance(against, list | tuple) else [] if against is None else [against]
    columns = {"split": split, "image_column": image_column, "label_column": label_column}
    if words and features is None:
        raise UserError("--words needs --features with a CLIP, whose text encoder reads them")
    samples = []
    # All are opened before the first is measured: what is wrong with any is said at once.
    opened = [open_images(source, **columns) for source in [dataset, *others]]
    for images in opened[1:]:
        if opened[0].class_names and images.class_names:
            common_classes(opened[0].name, opened[0].class_names, images.name, images.class_names)
    model = load_model(features, words) if features is not None else None
    options = {"max_images": max_images, "seed": seed, "progress": progress, "on_rejected": on_rejected}
    for images in opened:
        if model:
            samples.append(add_features(collect(images, thumbnail_size=THUMBNAIL_SIZE, **options), model, progress))
        else:
            samples.append(collect(images, **options))
    return audit_samples(samples[0], samples[1:], resamples=resamples, seed=seed)


def audit_samples(sample: Sample, others: Sequence[Sample] = (), *, resamples: int = 999, seed: int = 0) -> Audit:
    """`audit` on images that were measured before (`collecting.collect`)."""
    for other in others:
        pair(sample, other)
    num_classes = len(sample.class_names)
    options = {"resamples": resamples, "seed": seed}
    findings = examine_sample(sample, **options)
    if not findings:
        raise UserError(f"{sample.name} has no attribute in two classes or more")
    return Audit(
        sample=sample,
        findings=findings,
        pixel_distance=measure_diversity(sample.small, sample.labels, num_classes, **options),
        feature_distance=measure_diversity(_vectors(sample), sample.labels, num_classes, **options),
        near_duplicates=find_near_duplicates(sample),
        comparisons=[compare(sample, other, **options) for other in others],
        sets=classify_sets([sample, *others], seed) if others else [],
    )


def _vectors(sample: Sample) -> np.ndarray:
    """A model's features (n, D), or all attributes of the pixels in units of their deviations; a missing one is 0."""
    if sample.features is not None:
        return sample.features
    chosen = [sample.values[name] for name, attribute in sample.attributes.items() if attribute.axis != "file"]
    values = np.concatenate(chosen, 1)
    values = values[:, ~np.isnan(values).all(0)]
    deviation = np.nanstd(values, 0)
    return np.nan_to_num((values - np.nanmean(values, 0)) / np.where(deviation > 0, deviation, 1))
