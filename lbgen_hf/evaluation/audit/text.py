"""An audit as plain text, for a terminal."""

from typing import TYPE_CHECKING

import numpy as np

from lbgen_hf.evaluation.audit.comparing import Comparison
from lbgen_hf.evaluation.audit.set_classification import Told

if TYPE_CHECKING:
    from lbgen_hf.evaluation.audit.auditing import Audit

_BAR = 20


def as_text(audit: "Audit") -> str:
    """The findings, the worst classes, the comparisons: a table each."""
    sample = audit.sample
    read = f"{len(sample):,} images of {len(sample.class_names):,} classes"
    if sample.num_rows > len(sample) + len(sample.rejected):
        read += f", sampled from {sample.num_rows:,}"
    if sample.rejected:
        read += f"; {len(sample.rejected):,} could not be read"
    heading = "share of the label's entropy that each attribute gives away [95 % interval]:"
    lines = [f"{sample.name}: {read}", "", heading]
    for finding in audit.findings:
        name, word = finding.attribute.name, audit.verdicts[finding.attribute.name]
        bar = "#" * round(_BAR * max(0.0, min(1.0, finding.relation.score)))
        low, high = finding.interval
        lines.append(
            f"  {finding.attribute.axis:<10} {name:<18} {finding.relation.score:6.3f} [{low:6.3f}, {high:6.3f}]  "
            f"p {finding.relation.p_value:.3f}  varies {finding.entropy_given_label:4.2f} nats  {word:<8} {bar}"
        )
    lines += ["", *_worst_classes(audit), *_within_class(audit)]
    for comparison in audit.comparisons:
        lines += ["", *_comparison(comparison)]
    if audit.sets:
        lines += ["", *_sets(audit.sets)]
    return "\n".join(line.rstrip() for line in lines)


def worst_classes(audit: "Audit", count: int = 3) -> dict[str, list[int]]:
    """Attribute name to the ids of the classes that it gives away most, for the attributes that tell anything."""
    worst = {}
    for finding in audit.findings:
        if audit.verdicts[finding.attribute.name] in ("weak", "clear", "strong"):
            scores = finding.relation.classes
            ranked = [int(i) for i in np.argsort(-scores) if np.isfinite(scores[i])]  # NaN: the class has none of it
            worst[finding.attribute.name] = ranked[:count]
    return worst


def _worst_classes(audit: "Audit") -> list[str]:
    lines = []
    for name, ids in worst_classes(audit).items():
        lines.append(f"  {name:<18} tells most of {', '.join(audit.sample.class_names[i] for i in ids)}")
    return lines or ["  no attribute tells the class: what is left is within chance"]


def _within_class(audit: "Audit") -> list[str]:
    repeats = audit.near_duplicates
    lines = [""]
    vectors = "attributes" if audit.sample.features is None else "features"
    for what, distance in (("pixels", audit.pixel_distance), (vectors, audit.feature_distance)):
        low, high = distance.interval
        lines.append(
            f"distance within a class against the whole set, {what}: {distance.mean:.3f} [{low:.3f}, {high:.3f}]"
        )
    across = repeats.across_classes(audit.sample.labels)
    lines.append(f"near-duplicates: {len(repeats.pairs):,} images, {across:,} of them repeat one of another class")
    return lines


def _comparison(comparison: Comparison) -> list[str]:
    total = sum(comparison.images_per_class.values())
    lines = [f"against {comparison.other}: {len(comparison.class_names)} classes, {total:,} images of each set"]
    for change in comparison.attributes:
        low, high = change.interval
        moved = [c for c in comparison.classes[change.name] if c.word == change.word != "same"]
        where = f" ({len(moved)} of {len(comparison.classes[change.name])} classes)" if change.word != "same" else ""
        lines.append(
            f"  {change.name:<18} {change.score:6.3f}, there {change.other:6.3f}: {change.change:+.3f} "
            f"[{low:+.3f}, {high:+.3f}] {change.word}{where}"
        )
    return lines


def _sets(sets: list[Told]) -> list[str]:
    lines = [f"accuracy of telling the datasets apart, chance {sets[0].chance:.2f}, {sets[0].num_test:,} test images:"]
    for told in sets:
        low, high = told.interval
        lines.append(
            f"  {told.transformation:<18} {told.accuracy:.3f} [{low:.3f}, {high:.3f}]; "
            f"two halves of the first, chance 0.50: {told.null_accuracy:.3f}"
        )
    return lines
