"""The bias that was measured, base model against lbGen, as a page."""

import html
import json
import math
from pathlib import Path

# What `lbgen_hf.biaslab.measure.measure` returns, in words, and whether less (-1) or more (1) of it is wanted.
FIGURES = {
    "mi_background": ("Background tells the class", "mutual information, nats", -1),
    "mi_texture": ("Texture tells the class", "mutual information, nats", -1),
    "mi_place": ("Place tells the class", "mutual information, nats", -1),
    "own_background": ("On the background of the biased world", "share of pictures", -1),
    "own_texture": ("With the texture of the biased world", "share of pictures", -1),
    "own_place": ("At the place of the biased world", "share of pictures", -1),
    "class_accuracy": ("The judge sees the class", "share of pictures", 1),
    "quality": ("Quality", "1 to 5", 1),
    "distance_within_class": ("Pictures of a class differ", "1 - cosine of CLIP features", 1),
    "commonest_background": ("The commonest background", "its share of all pictures", 0),
    "colour_spread": ("Spread of the mean colour", "standard deviation", 0),
}
_SPAN = 1.0  # the chart reaches from -100 % to +100 %


def bias_page(path: Path | None) -> str:
    """The table as HTML.

    Args:
        path: what `training/measure_bias.py --lora ... --output PATH` wrote; None: nothing was measured.
    """
    if path is None:
        return (
            '<div class="lb-note"><p>Nothing was measured for this model yet. In a checkout,</p>'
            "<pre><code>python training/measure_bias.py --lora FOLDER --output FOLDER/bias.json</code></pre>"
            "<p>measures a LoRA of lbgen-tiny, and a demo started with <code>--lora FOLDER</code> shows it here.</p>"
            "</div>"
        )
    measured = json.loads(path.read_text())
    rows = next(rows for name, rows in measured["tables"].items() if name != "base" or len(measured["tables"]) == 1)
    rows = {row["name"]: row for row in rows}
    body = "".join(_row(rows[name], *words) for name, words in FIGURES.items() if name in rows)
    options = measured["options"]
    return (
        '<div class="lb-note"><p>What an independent judge sees in pictures of every class, drawn from the class name '
        "alone, by the base model and by lbGen from the same noise. Bias is how much of the class the background, the "
        "texture and the place give away. Brackets and lines: 95 % intervals, from a bootstrap over pictures.</p>"
        f'<div class="lb-scroll"><table class="lb-bias"><thead><tr><th>figure</th><th>base</th><th>lbGen</th>'
        f'<th class="lb-chart">change, −100 % to +100 %</th></tr></thead><tbody>{body}</tbody></table></div>'
        f"<p>{html.escape(options['images_per_class'])} pictures of each class, "
        f"{html.escape(options['num_inference_steps'])} steps, guidance {html.escape(options['guidance_scale'])}; "
        "measured by <code>training/measure_bias.py</code>.</p></div>"
    )


def _row(row: dict, title: str, unit: str, wanted: int) -> str:
    return (
        f'<tr><th scope="row">{title}<small>{unit}{_WANTED[wanted]}</small></th>'
        f"<td>{_interval(row['base'])}</td><td>{_interval(row['tuned'])}</td>"
        f"<td>{_chart(row['relative'], wanted)}</td></tr>"
    )


_WANTED = {-1: "; less is better", 0: "", 1: "; more is better"}


def _interval(triple: list[float]) -> str:
    value, low, high = triple
    return f"{value:.3f}<small>[{low:.3f}, {high:.3f}]</small>"


def _chart(triple: list[float], wanted: int) -> str:
    """A dot with its interval on a line from -100 % to +100 %; coloured where the interval excludes no change."""
    if not all(map(math.isfinite, triple)):
        return ""
    value, low, high = (max(-_SPAN, min(_SPAN, number)) for number in triple)
    sign = (low > 0) - (high < 0)
    kind = "same" if sign == 0 or wanted == 0 else "better" if sign == wanted else "worse"
    x, x_low, x_high = (100 + 95 * number / _SPAN for number in (value, low, high))
    return (
        f'<svg viewBox="0 0 200 20" class="lb-{kind}" role="img" aria-label="{triple[0]:+.0%}">'
        '<line x1="100" y1="0" x2="100" y2="20" class="lb-zero"/>'
        f'<line x1="{x_low:.1f}" y1="10" x2="{x_high:.1f}" y2="10"/><circle cx="{x:.1f}" cy="10" r="4"/></svg>'
        f"<small>{triple[0]:+.0%} [{triple[1]:+.0%}, {triple[2]:+.0%}]</small>"
    )
