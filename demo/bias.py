"""The fourth tab: the bias that was measured, base model against its LoRAs, as a table with a chart."""

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lbgen_hf.biaslab.measure import DASH, is_of_too_few
from lbgen_hf.errors import UserError, first_line

_ATTRIBUTES = ("background", "texture", "place")
# What `lbgen_hf.biaslab.measure.measure` returns, in words, and whether less (-1) or more (1) of it is wanted. A model
# whose images turn plain has less bias by the first of these: the entropies and the shares of plain images show it.
METRICS = {
    **{f"mi_{x}": (f"{x.capitalize()} tells the class", "mutual information, nats", -1) for x in _ATTRIBUTES},
    **{f"mi_marked_{x}": (f"… among images that are not plain: {x}", "the same, nats", -1) for x in _ATTRIBUTES},
    **{f"own_{x}": (f"Own {x} of the biased world", "share of images", -1) for x in _ATTRIBUTES},
    **{f"plain_{x}": (f"Plain {x}", "share of images", -1) for x in _ATTRIBUTES},
    **{f"entropy_{x}": (f"Diversity of {x}", "entropy, nats", 1) for x in _ATTRIBUTES},
    "commonest_background": ("Commonest background", "its share of all images", -1),
    "class_accuracy": ("Judge sees the class", "share of images", 1),
    "quality": ("Quality", "1 to 5", 1),
    "distance_within_class": ("Distance within a class", "1 − cosine of CLIP features", 1),
    "hue_spread": ("Spread of the hue", "0 to 1", 1),
    "colour_spread": ("Spread of the mean colour", "standard deviation", 1),
}
_WANTED = {-1: "less is better", 1: "more is better"}
# How it was measured, in words.
_OPTIONS = {
    "pretrained_model_name_or_path": "base model {}",
    "images_per_class": "{} images of each class",
    "num_inference_steps": "{} steps",
    "guidance_scale": "guidance {}",
    "seed": "noise of seed {}",
    "judge": "seen by {}",
}
_Triple = tuple[float, float, float]  # value, low, high


class _Measured(NamedTuple):
    """What a file says of a LoRA: by metric the triples "base", "tuned" and "relative"; and how it was measured."""

    rows: dict[str, dict[str, _Triple]]
    conditions: str


def bias_page(paths: Mapping[str, Path]) -> str:
    """The table as HTML.

    Args:
        paths: by the name of a LoRA, what `training/measure_bias.py --lora ... --output PATH` wrote; none: nothing was
            measured.

    Raises:
        UserError: one is no such file.
    """
    if not paths:
        return (
            '<div class="lb-note"><p>No bias has been measured for this model. In a checkout,</p>'
            '<pre tabindex="0"><code>python training/measure_bias.py --lora FOLDER --output FOLDER/bias.json'
            "</code></pre>"
            "<p>measures a LoRA of lbgen-tiny; a demo started with <code>--lora FOLDER</code> shows it here.</p></div>"
        )
    measured = {name: _read(path) for name, path in paths.items()}
    span = _span(measured.values())
    body = "".join(_metric(measured, metric, *words, span) for metric, words in METRICS.items())
    return (
        '<div class="lb-note"><p>An independent judge looks at images of every class, generated from the class name '
        "alone, by the base model and by each LoRA from the same noise. A generator is biased where background, "
        "texture or place tell the class. Brackets and lines are 95 % intervals from a bootstrap over images; a mark "
        'is coloured where its interval excludes no change: <span class="lb-key lb-better">better</span> or '
        '<span class="lb-key lb-worse">worse</span>.</p>'
        '<table class="lb-bias" role="table"><thead role="rowgroup"><tr role="row">'
        '<th scope="col" role="columnheader">Metric</th><th scope="col" role="columnheader">Model</th>'
        '<th scope="col" role="columnheader">Value</th>'
        f'<th scope="col" role="columnheader" class="lb-chart">Change from the base model{_axis(span)}</th>'
        f"</tr></thead>{body}</table>"
        f"<p>Measured by <code>training/measure_bias.py</code>:</p>{_conditions(measured)}</div>"
    )


def _read(path: Path) -> _Measured:
    """What a file says; one that measured the base alone compares it with itself."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        tables, options = record["tables"], dict(record["options"])
        rows = _rows_of(tables, path.resolve().parent.name)
        measured = {row["name"]: {key: _triple(row[key]) for key in ("base", "tuned", "relative")} for row in rows}
        options["pretrained_model_name_or_path"] = Path(options["pretrained_model_name_or_path"]).name
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not what training/measure_bias.py --output writes: {first_line(error)}") from error
    words = (words.format(options[name]) for name, words in _OPTIONS.items() if name in options)
    return _Measured(measured, ", ".join(words))


def _rows_of(tables: Mapping[str, list[dict]], lora: str) -> list[dict]:
    """The rows of the only LoRA, or among several of the one of this name; without any, the base model's."""
    found = [(Path(name).name, rows) for name, rows in tables.items() if name != "base"]
    if len(found) > 1:
        found = [(name, rows) for name, rows in found if name == lora]
        if len(found) != 1:
            raise ValueError(f"it has several LoRAs, and not one that is called {lora}")
    return found[0][1] if found else tables["base"]


def _triple(values: Sequence[float]) -> _Triple:
    value, low, high = map(float, values)
    return value, low, high


def _conditions(measured: Mapping[str, _Measured]) -> str:
    """How all were measured, or how each was."""
    groups = _groups({name: conditions for name, (_, conditions) in measured.items()})
    if len(groups) == 1:
        return f"<p>{html.escape(next(iter(groups)))}.</p>"
    lines = (f"{', '.join(names)}: {conditions}." for conditions, names in groups.items())
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def _groups(values: Mapping[str, str]) -> dict[str, list[str]]:
    """Each value with the names that have it."""
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    return groups


def _metric(measured: Mapping[str, _Measured], metric: str, title: str, unit: str, wanted: int, span: float) -> str:
    """One metric: a line for the base model and one for each LoRA on it; then the same for other base models."""
    found = {name: rows[metric] for name, (rows, _) in measured.items() if metric in rows}
    if not found:
        return ""
    bases = _groups({name: f"{row['base']} {measured[name].conditions}" for name, row in found.items()})
    lines: list[tuple[str, str, str]] = []
    for names in bases.values():
        base = "Base model" if len(bases) == 1 else f"Base model of {', '.join(names)}"
        lines.append((base, _value(measured[names[0]].rows, metric, "base"), ""))
        for name in names:
            value = _value(measured[name].rows, metric, "tuned")
            lines.append((name, value, _chart(found[name]["relative"], wanted, span) if value != DASH else ""))
    head = (
        f'<th scope="rowgroup" role="rowheader" rowspan="{len(lines)}">{title}'
        f"<small>{unit}; {_WANTED[wanted]}</small></th>"
    )
    return (
        '<tbody role="rowgroup">'
        + "".join(
            f'<tr role="row">{head if number == 0 else ""}<td role="cell">{html.escape(name)}</td>'
            f'<td role="cell">{value}</td><td role="cell" class="lb-chart">{chart}</td></tr>'
            for number, (name, value, chart) in enumerate(lines)
        )
        + "</tbody>"
    )


def _value(rows: dict[str, dict[str, _Triple]], metric: str, of: str) -> str:
    """A metric of the base model or of a LoRA with its interval; a dash where nearly no image has what it is about."""
    if is_of_too_few(metric, lambda name: rows[name][of][0] if name in rows else 0.0):
        return DASH
    value, low, high = rows[metric][of]
    return f"{value:.3f} <small>[{low:.3f}, {high:.3f}]</small>"


# ---- the chart: log2 of the ratio to the base model, so that a half and a double are equally far from no change


def _doublings(relative: float) -> float:
    """-0.5 -> -1; 1.0 -> 1; -1.0 -> -inf."""
    return math.log2(1 + relative) if relative > -1 else -math.inf


def _span(measured: Iterable[_Measured]) -> float:
    """How many halvings and doublings the axis needs: 1 to 4."""
    relative = [x for rows, _ in measured for name, row in rows.items() if name in METRICS for x in row["relative"]]
    distances = [abs(_doublings(x)) for x in relative if math.isfinite(x) and x > -1]
    return min(4, max(1, math.ceil(2 * max(distances, default=1)) / 2))


def _powers(span: float) -> range:
    return range(-math.floor(span), math.floor(span) + 1)


def _x(doublings: float, span: float) -> float:
    return 100 + 92 * max(-1.0, min(1.0, doublings / span))


def _axis(span: float) -> str:
    labels = "".join(f'<text x="{_x(power, span):.1f}" y="10">{_ratio(power)}</text>' for power in _powers(span))
    return f'<svg viewBox="0 0 200 13" class="lb-axis" aria-hidden="true">{labels}</svg>'


def _ratio(power: int) -> str:
    return "1" if power == 0 else f"÷{2**-power}" if power < 0 else f"×{2**power}"


def _chart(triple: _Triple, wanted: int, span: float) -> str:
    """A dot with its interval; an arrow where the value lies beyond the axis."""
    if not all(map(math.isfinite, triple)):
        return "—"
    value, low, high = map(_doublings, triple)
    sign = (low > 0) - (high < 0)
    kind = "same" if sign == 0 else "better" if sign == wanted else "worse"
    ticks = "".join(
        f'<path d="M{_x(power, span):.1f} 0 v16" class="{"lb-zero" if power == 0 else "lb-tick"}"/>'
        for power in _powers(span)
    )
    x = _x(value, span)
    if abs(value) <= span:
        mark = f'<circle cx="{x:.1f}" cy="8" r="4"/>'
    else:
        tip = math.copysign(7, value)
        mark = f'<path d="M{x - tip / 2:.1f} 3 L{x + tip:.1f} 8 L{x - tip / 2:.1f} 13 Z"/>'
    words = f"{triple[0]:+.0%} <small>[{triple[1]:+.0%}, {triple[2]:+.0%}]</small>".replace("-", "−")
    return (
        f'<div><svg viewBox="0 0 200 16" class="lb-{kind}" aria-hidden="true">{ticks}'
        f'<line x1="{_x(low, span):.1f}" y1="8" x2="{_x(high, span):.1f}" y2="8"/>{mark}</svg>'
        f"<span>{words}</span></div>"
    )
