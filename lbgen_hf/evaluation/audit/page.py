"""An audit as one HTML file: no script, no font and no image from elsewhere."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lbgen_hf.evaluation.audit.comparing import Change, Comparison
from lbgen_hf.evaluation.audit.findings import Finding
from lbgen_hf.evaluation.audit.set_classification import Told
from lbgen_hf.evaluation.audit.text import worst_classes

if TYPE_CHECKING:
    from lbgen_hf.evaluation.audit.auditing import Audit

NUM_EXAMPLES = 8
_STYLE = Path(__file__).with_name("page.css")
_LISTED = 50  # unreadable images, changed classes

_NOTES = """
<ul>
<li>A score is the share of the label's entropy that the attribute gives away: mutual information less what shuffled
labels have on average, over the label's entropy less the same (adjusted mutual information). 0 is no relation, 1 is
an attribute that determines the label; below zero is chance.</li>
<li>The grey band is where 95 % of scores lie when the labels are shuffled; the line is the 95 % interval of a bootstrap
over the images of each class.</li>
<li>“Strong”, “clear” and “weak” start at 0.2, 0.05 and 0. The three are only said where the p-value, corrected for the
number of attributes, is at most 0.02: one unbiased dataset in fifty gets such a word by accident.</li>
<li>“Varies” is the attribute's entropy within a class. Where it is near zero there is nothing to tell classes apart by,
and nothing to learn from either: a score of zero is then no good news.</li>
<li>The object is what differs in colour from the border of the frame; the background is the ring around it. An object
that fills the frame is taken for background, or has none. Look at the examples before believing a score.</li>
<li>“Background features” is how well a linear probe on a model's features of a square beside the object predicts the
class of images that it was not fitted to; “nearest word” is the one of a list that CLIP chooses (--features).</li>
<li>Colour, brightness, contrast and spectrum are those of the whole image: a biased background moves them too.</li>
<li>A relation is not a fault by itself: fish live in water. It is what a network can use in place of the object.</li>
</ul>
"""


def make_page(audit: "Audit") -> str:
    """The page index.html of an audit."""
    title = f"Audit of {audit.sample.name}"
    parts = [
        _heading(audit),
        _attributes(audit),
        *(_comparison(comparison) for comparison in audit.comparisons),
        _sets(audit.sets),
        _worst(audit),
        _within_class(audit),
        _unreadable(audit.sample.rejected),
        f"<h2>How to read it</h2>{_NOTES}",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def spoken(name: str) -> str:
    """An attribute's name as words."""
    return name.replace("_", " ").replace("jpeg", "JPEG")


def _heading(audit: "Audit") -> str:
    sample = audit.sample
    found = [f for f in audit.findings if audit.verdicts[f.attribute.name] in ("strong", "clear")]
    found.sort(key=lambda finding: -finding.relation.score)
    if found:
        told = ", ".join(spoken(finding.attribute.name) for finding in found[:4])
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        lead = f"The label can be read from {told}{more}."
    else:
        lead = "No attribute gives the label away to speak of."
    read = f"{len(sample):,} images of {len(sample.class_names):,} classes"
    if sample.num_rows > len(sample) + len(sample.rejected):
        read += f", a uniform sample of {sample.num_rows:,}"
    return f'<h1>{escape(sample.name)}</h1><p class="quiet">{read}</p><p class="lead">{lead}</p>'


def _attributes(audit: "Audit") -> str:
    in_image = [finding for finding in audit.findings if finding.attribute.axis != "file"]
    of_file = [finding for finding in audit.findings if finding.attribute.axis == "file"]
    words = audit.verdicts
    files = ""
    if of_file:
        files = (
            "<h2>What the file says</h2><p>Traits of the files are leaks, not bias: a network learns them where it "
            f"can, and re-encoding takes them away.</p>{_rows(of_file, words)}"
        )
    return (
        "<h2>What tells the class</h2><p>The share of the label's entropy that each attribute gives away, 0 to 1.</p>"
        f"{_rows(in_image, words)}{files}"
    )


def _rows(findings: Sequence[Finding], words: dict[str, str]) -> str:
    highest = max(finding.interval[1] for finding in findings)
    top = next(value for value in (0.1, 0.25, 0.5, 1.0) if highest <= value or value == 1)
    rows = "".join(_row(finding, words[finding.attribute.name], top) for finding in findings)
    return f'<p class="quiet">A full bar is {top:g}.</p><ul class="rows">{rows}</ul>'


def _row(finding: Finding, word: str, top: float) -> str:
    attribute, relation = finding.attribute, finding.relation
    low, high = finding.interval
    null = np.quantile(relation.null, [0.025, 0.975])
    return (
        f'<li class="row"><div><b>{spoken(attribute.name)}</b><small>{escape(attribute.meaning)}</small></div>'
        f"{_bar(np.array([relation.score, low, high, *null]) / top, word)}"
        f'<div class="numbers">{relation.score:.3f} [{low:.3f}, {high:.3f}] <span class="word {word}">{word}</span>'
        f"<small>p {relation.p_value:.3f}, varies {finding.entropy_given_label:.2f} nats</small></div></li>"
    )


def _x(share: float) -> float:
    """Where a share in [-0.05, 1] of the full bar lies on a drawing that is 400 wide."""
    return 20 + 376 * float(np.clip(share, -0.05, 1))


def _bar(shares: np.ndarray, word: str) -> str:
    """The bar of a score, its interval as a line, the null as a band: (score, low, high, null low, null high)."""
    score, low, high, null_low, null_high = map(_x, shares)
    left, right = sorted((_x(0), score))
    return (
        '<svg class="bar" viewBox="0 0 400 22" preserveAspectRatio="none" aria-hidden="true">'
        f'<line class="axis" x1="{_x(0)}" x2="{_x(0)}" y1="0" y2="22"/>'
        f'<line class="axis" x1="{_x(1)}" x2="{_x(1)}" y1="0" y2="22"/>'
        f'<rect class="fill {word}" x="{left:.1f}" y="5" width="{right - left:.1f}" height="12"/>'
        f'<rect class="null" x="{null_low:.1f}" y="1" width="{max(null_high - null_low, 1):.1f}" height="20"/>'
        f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="11" y2="11"/></svg>'
    )


def _worst(audit: "Audit") -> str:
    by_name = {finding.attribute.name: finding for finding in audit.findings}
    worst = worst_classes(audit)
    ranked = sorted(worst, key=lambda name: -by_name[name].relation.score)
    if not ranked:
        return ""
    sections = "".join(
        _worst_of(audit, by_name[name], worst[name], is_open=place == 0) for place, name in enumerate(ranked)
    )
    return (
        "<h2>Worst classes, and what to do next</h2><p>For each attribute the three classes that it tells apart best: "
        f"images with the value that gives the class away, and images of the class without it.</p>{sections}"
    )


def _worst_of(audit: "Audit", finding: Finding, class_ids: list[int], is_open: bool) -> str:
    names = [audit.sample.class_names[class_id] for class_id in class_ids]
    parts = [f'<p class="advice">What to do: {escape(finding.attribute.advice)}.</p>']
    for class_id, name in zip(class_ids, names, strict=True):
        examples, counter_examples = finding.typical_images(audit.sample.labels, class_id)
        total = len(examples) + len(counter_examples)
        value = finding.typical_value(audit.sample.labels, class_id)
        typical = f"the typical value, {escape(value)}" if value else "the typical value"
        parts.append(
            f"<h3>{escape(name)} <small>score {finding.relation.classes[class_id]:.2f}</small></h3>"
            f'<div class="pair"><div><small>{len(examples)} of {total} images have {typical}</small>'
            f"{_strip(audit, examples, name)}</div><div><small>{len(counter_examples)} have another</small>"
            f"{_strip(audit, counter_examples, name)}</div></div>"
        )
    summary = f"{spoken(finding.attribute.name)} <small>{escape(', '.join(names))}</small>"
    return f"<details{' open' if is_open else ''}><summary>{summary}</summary>{''.join(parts)}</details>"


def _strip(audit: "Audit", indices: np.ndarray, name: str) -> str:
    if not len(indices):
        return "<p class='quiet'>There is none.</p>"
    images = (base64.b64encode(audit.sample.thumbnail(int(index))).decode() for index in indices[:NUM_EXAMPLES])
    tags = (f'<img alt="{escape(name)}" src="data:image/jpeg;base64,{image}">' for image in images)
    return f'<div class="strip">{"".join(tags)}</div>'


def _comparison(comparison: Comparison) -> str:
    words = [change.word for change in comparison.attributes]
    total = sum(comparison.images_per_class.values())
    rows = "".join(_change_row(change, comparison.classes[change.name]) for change in comparison.attributes)
    return (
        f"<h2>Against {escape(comparison.other)}</h2>"
        f'<p class="lead">Less biased in {words.count("better")} of {len(words)} attributes, more in '
        f"{words.count('worse')}; no difference beyond chance in {words.count('same')}.</p>"
        f"<p>{len(comparison.class_names):,} classes that both have, equally many images of each: {total:,} of each "
        "set. A bar to the left is less bias here than there. Intervals are 95 %, not corrected for their number.</p>"
        f'<ul class="rows">{rows}</ul>'
    )


def _change_row(change: Change, classes: list[Change]) -> str:
    low, high = change.interval
    moved = sorted((c for c in classes if c.word != "same"), key=lambda c: -abs(c.change))
    where = ""
    for word in ("better", "worse"):
        names = [c.name for c in moved if c.word == word]
        if names:
            listed = escape(", ".join(names[:3])) + (", …" if len(names) > 3 else "")
            where += f'<small><span class="{word}">{word}</span> in {len(names)} classes: {listed}</small>'
    left, right = sorted((_dx(0), _dx(change.change)))
    bar = (
        '<svg class="bar" viewBox="0 0 400 22" preserveAspectRatio="none" aria-hidden="true">'
        '<line class="axis" x1="200" x2="200" y1="0" y2="22"/>'
        f'<rect class="fill {change.word}" x="{left:.1f}" y="5" width="{right - left:.1f}" height="12"/>'
        f'<line class="whisker" x1="{_dx(low):.1f}" x2="{_dx(high):.1f}" y1="11" y2="11"/></svg>'
    )
    return (
        f'<li class="row"><div><b>{spoken(change.name)}</b>{where}</div>{bar}'
        f'<div class="numbers">{change.change:+.3f} [{low:+.3f}, {high:+.3f}] '
        f'<span class="word {change.word}">{change.word}</span>'
        f"<small>{change.score:.3f} here, {change.other:.3f} there</small></div></li>"
    )


def _dx(change: float) -> float:
    """Where a change in [-1, 1] lies on a bar that is 400 wide."""
    return 200 + 196 * float(np.clip(change, -1, 1))


def _within_class(audit: "Audit") -> str:
    sample, repeats = audit.sample, audit.near_duplicates
    counts = repeats.of_classes(sample.labels, len(sample.class_names))
    alike = np.argsort(audit.pixel_distance.classes)[:5]
    rows = "".join(
        f"<tr><td>{escape(sample.class_names[i])}</td><td>{audit.pixel_distance.classes[i]:.2f}</td>"
        f"<td>{audit.feature_distance.classes[i]:.2f}</td><td>{counts[i]}</td></tr>"
        for i in alike
    )
    distances = []
    for what, distance in (("of pixels", audit.pixel_distance), ("of features", audit.feature_distance)):
        low, high = distance.interval
        distances.append(f"{distance.mean:.2f} [{low:.2f}, {high:.2f}] {what}")
    across = repeats.across_classes(sample.labels)
    wrong = f" {across:,} repeat an image of another class: one of the two labels may be wrong." if across else ""
    return (
        "<h2>Within a class</h2><p>How different two images of a class are, over how different two of the set are: "
        f"{', '.join(distances)}. 1 is as diverse as the set, 0 is one image repeated.</p>"
        f"<p>{len(repeats.pairs):,} images nearly repeat another.{wrong}</p>"
        '<div class="scroll"><table><tr><th>most alike</th><th>pixels</th><th>features</th><th>repeats</th></tr>'
        f"{rows}</table></div>"
    )


def _sets(sets: list[Told]) -> str:
    if not sets:
        return ""
    rows = []
    for told in sets:
        (low, high), (null_low, null_high) = told.interval, told.null_interval
        word = "worse" if told.is_told else "same"
        rows.append(
            f'<tr><td>{told.transformation}</td><td class="{word}">{told.accuracy:.2f} [{low:.2f}, {high:.2f}]</td>'
            f"<td>{told.null_accuracy:.2f} [{null_low:.2f}, {null_high:.2f}]</td></tr>"
        )
    return (
        "<h2>Can the sets be told apart?</h2><p>How often a small network names the set that an image is from, on "
        f"{sets[0].num_test:,} images that it was not trained on, where chance is {sets[0].chance:.2f}; all "
        "re-encoded to one size and format, equally many of each set. Beside it the same network on two random halves "
        "of the first set, where chance is 0.50: what noise alone gives.</p>"
        '<div class="scroll"><table><tr><th>what is left of the images</th><th>accuracy</th><th>two halves</th></tr>'
        f"{''.join(rows)}</table></div>"
    )


def _unreadable(rejected: list[str]) -> str:
    if not rejected:
        return ""
    lines = "".join(f"<li>{escape(line)}</li>" for line in rejected[:_LISTED])
    more = f"<p>and {len(rejected) - _LISTED:,} more, in audit.json</p>" if len(rejected) > _LISTED else ""
    return f"<h2>Unreadable images</h2><ul>{lines}</ul>{more}"
