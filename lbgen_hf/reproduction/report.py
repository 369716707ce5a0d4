"""REPORT.md, report.json and plots of a reproduction: what disappoints first.

Every table and every curve is made of report.json alone.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lbgen_hf.evaluation.report import markdown_table
from lbgen_hf.evaluation.statistics import finite_or_null
from lbgen_hf.files import write_atomically
from lbgen_hf.reproduction.adapters import RECIPES, RUNS
from lbgen_hf.reproduction.orders import (
    FAIL,
    GROUPS,
    NOT_SEEN,
    PASS,
    expected_orders,
    paired_difference,
    prediction_interval,
)
from lbgen_hf.reproduction.plots import save_doses, save_few_shot, save_frontier, save_polysemy, save_same_noise
from lbgen_hf.reproduction.results import Results

# Metric to its title and which way is better: what a backbone learned, in % or points.
BACKBONE_METRICS = {
    "transfer": "transfer to novel classes ↑",
    "few_shot_0.1": "transfer from a tenth of the images ↑",
    "few_shot_gain": "transfer from a tenth, less from all ↑",
    "unbiased_accuracy": "unbiased scenes ↑",
    "own_context_accuracy": "scenes in their own context ↑",
    "texture_inclination": "texture inclination ↓",
    "cb_avg": "CB avg ↑",
    "cb_12": "CB (k = 1, 2) ↑",
    "background_gap": "background gap ↓",
    "relative_gap": "gap / originals ↓",
}
# ... and what the judge sees in the images, a table each. Information and entropy are in nats.
_ATTRIBUTES = ("background", "texture", "place")
INFORMATION = {
    **{f"mi_{name}": f"information of class and {name} ↓" for name in _ATTRIBUTES},
    **{f"mi_marked_{name}": f"information of class and {name}, of images not plain ↓" for name in _ATTRIBUTES},
}
DIVERSITY = {
    **{f"entropy_{name}": f"entropy of {name} ↑" for name in _ATTRIBUTES},
    **{f"entropy_given_class_{name}": f"entropy of {name}, given the class ↑" for name in _ATTRIBUTES},
    "distance_within_class": "distance within class ↑",
    "hue_spread": "hue spread ↑",
    "colour_spread": "colour spread ↑",
}
QUALITY = {
    "class_accuracy": "class right ↑",
    "quality": "quality (1 to 5) ↑",
    "clip_alignment": "cosine of image and name by the reward's CLIP ↑",
    **{f"plain_{name}": f"share of plain {name} ↓" for name in _ATTRIBUTES},
}
TITLES = BACKBONE_METRICS | INFORMATION | DIVERSITY | QUALITY
REPORT_FILE = "REPORT.md"
# What is compared from run to run: the adapter is trained once for each other arm.
_OF_RUNS = (
    *("transfer", "unbiased_accuracy", "class_accuracy", "quality", "mi_background"),
    *("entropy_background", "entropy_texture", "distance_within_class"),
)
_WORST_FIRST = (FAIL, NOT_SEEN, PASS)

_PAGE = """# The paper's comparisons in biaslab

{settings}

## Expected orders

What was expected was written down before the run (lbgen_hf/reproduction/expected.yaml). An order passes where the 95 %
interval of its difference lies on the expected side of zero, fails where it lies on the other, and is not seen at this
n where it holds zero. Metrics of backbones are paired by backbone and seed (Student's t over the pairs), metrics of
images by noise (bootstrap over images). The smallest effect is the true difference that the test finds with a power of
80 %. p is not corrected for the number of orders.

{orders}

{runs}## What backbones learn

The difference from the base model's images in points: the mean over backbones and seeds, paired by both, with the 95 %
interval of Student's t over the pairs. Then the values of each seed, in % and points.

{backbones}

{few_shot}## In the images

As the shipped judge, CLIP and quality scorer see them; 95 % intervals of a bootstrap over the images of each class. A
set that turned plain has no bias to measure and has not been debiased: information stands beside entropy, and beside
itself among images that are not plain. Few images have some information by chance: unbiased scenes show how much.

{images}

![Information of class and background against diversity, quality and accuracy](plots/frontier.png)

{doses}The same noise in each column:

![Samples from the same noise](plots/same_noise.jpg)

## A name of two meanings

A name may mean two things, as "crane" does. How many of its images the judge takes for which shape, beside those of the
specific names; these stand in the base model's captions with contexts at random, so they bring no context of their own.

{shapes}

![Images of a name of two meanings, and of its specific names](plots/polysemy.jpg)
"""


_RUNS_SECTION = """## From run to run

Each arm above has one adapter, and no interval covers what another run of its recipe would give. Here are several runs
of lbGen's, and where one more would lie with 95 % (Student's t). What lies within cannot be told from another run of
lbGen; what lies outside is **bold**. Ends beyond what is possible show how little so few runs say.

{runs}

"""


def write_report(results: Results, out: Path, run: dict[str, Any]) -> None:
    """Write the report of the arms that are complete.

    Args:
        results: of all their cells.
        out: the run's folder, with the arms' images.
        run: what all cells have in common, the seconds of each, and the titles of arms that are missing.
    """
    report = finite_or_null(run | results.as_json())
    plots = out / "plots"
    plots.mkdir(exist_ok=True)
    save_same_noise(report, out, plots / "same_noise.jpg")
    save_frontier(report, plots / "frontier.png")
    save_polysemy(report, out, plots / "polysemy.jpg")
    optional = {
        "few_shot": ("Few-shot transfer", save_few_shot(report, plots / "few_shot.png")),
        "doses": ("Less and more of what is varied", save_doses(report, plots / "doses.png")),
    }
    write_atomically(out / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    shown = {name: f"![{title}](plots/{name}.png)\n\n" if there else "" for name, (title, there) in optional.items()}
    texts = tables(report)
    texts["runs"] = _RUNS_SECTION.format(**texts) if texts["runs"] else ""
    page = _PAGE.format(**texts, **shown)
    write_atomically(out / REPORT_FILE, page)


def tables(report: dict[str, Any]) -> dict[str, str]:
    """The parts of the page that are results, in Markdown: settings, orders, runs, backbones, images, shapes.

    Args:
        report: report.json.
    """
    by_seed = [_each_seed(report, name) for name in dict.fromkeys(name for name, _ in report["pairs"])]
    return {
        "settings": _settings(report),
        "orders": "\n\n".join([_summary(report), *_orders(report)]),
        "runs": runs_table(report, RUNS, tuple(RECIPES)),
        "backbones": "\n\n".join([_beside_base(report), *by_seed]),
        "images": "\n\n".join(_in_images(report, titles) for titles in (INFORMATION, DIVERSITY, QUALITY)),
        "shapes": _shapes(report),
    }


def _format(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _format_interval(values: Sequence[float | None], digits: int) -> str:
    """(value, low, high) as "0.44 [0.40, 0.48]"."""
    value, low, high = (_format(number, digits) for number in values)
    return value if value == "-" else f"{value} [{low}, {high}]"


def _settings(report: dict[str, Any]) -> str:
    settings, world = report["settings"], report["world"]
    missing = f" Not made yet: {'; '.join(report['missing_arms'])}." if report["missing_arms"] else ""
    return (
        f"Every arm has {settings['images_per_class']} images of each class (samples: "
        f"{settings['num_inference_steps']} steps of DPM-Solver++, guidance 2 where nothing else is said), every "
        f"backbone {settings['num_train_epochs']} epochs, so equal steps. Backbones and seeds: "
        f"{', '.join(f'{backbone} {seed}' for backbone, seed in report['pairs'])}. A seed varies a backbone's initial "
        "weights, batches and augmentation; images and test scenes are the same for all, so intervals do not cover "
        f"other images. biaslab's world: version {world['version']}, hash {world['hash']}; "
        f"lbgen_hf {report['lbgen_hf']}.{missing}"
    )


def _summary(report: dict[str, Any]) -> str:
    lines = []
    for group, title in GROUPS.items():
        counts = Counter(order["verdict"] for order in report["orders"] if order["group"] == group)
        if counts:
            told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in _WORST_FIRST)
            lines.append(f"- {title[0].upper()}{title[1:]}: {told}.")
    number = len(report["orders"])
    lines.append(
        f"- Were there no difference anywhere, about {number / 40:.1f} of these {number} would pass, and as many fail."
    )
    if left_out := len(expected_orders()) - number:
        lines.append(f"- {left_out} expected orders need arms or metrics that this run has not.")
    return "\n".join(lines)


def _orders(report: dict[str, Any]) -> Iterator[str]:
    """A table for each group that has orders in this run."""
    header = ["verdict", "from", "expected", "paper", "difference", "p", "smallest effect"]
    for group, title in GROUPS.items():
        orders = [order for order in report["orders"] if order["group"] == group]
        orders.sort(key=lambda order: _WORST_FIRST.index(order["verdict"]))
        if orders:
            table = markdown_table(header, [_order_row(report, order) for order in orders])
            yield f"### {title[0].upper()}{title[1:]}\n\n{table}"


def _order_row(report: dict[str, Any], order: dict[str, Any]) -> list[str]:
    digits = 1 if order["metric"] in BACKBONE_METRICS else 3
    left, right = (report["arms"][order[side]] for side in ("left", "right"))
    sign = ">" if order["expect"] == "higher" else "<"
    return [
        f"**{order['verdict']}**" if order["verdict"] == FAIL else order["verdict"],
        order["source"],
        f"{TITLES[order['metric']].rstrip(' ↑↓')}: {left} {sign} {right}",
        f"{order['paper'][0] - order['paper'][1]:+.1f}" if order["paper"] else "",
        _format_interval((order["difference"], *order["interval"]), digits),
        f"{order['p']:.3f}",
        _format(order["smallest_detectable"], digits),
    ]


def runs_table(report: dict[str, Any], runs: Sequence[str], others: Sequence[str]) -> str:
    """Runs of one recipe, where one more would lie, and other arms beside that.

    Args:
        report: report.json.
        runs: arms that differ in the run alone.
        others: arms whose adapter was fine-tuned once. Of both, those that the report has count.

    Returns:
        Markdown; "" for fewer than three runs.
    """
    runs = [arm for arm in runs if arm in report["arms"]]
    if len(runs) < 3:
        return ""

    def value(arm: str, metric: str) -> float:
        return report["metrics"][arm][metric][0]

    predicted = {metric: prediction_interval([value(run, metric) for run in runs]) for metric in _OF_RUNS}

    def cell(arm: str, metric: str) -> str:
        if metric not in report["metrics"][arm]:  # no backbone was pre-trained on its images
            return ""
        low, high = predicted[metric]
        text = _of_run(metric, value(arm, metric))
        return text if low <= value(arm, metric) <= high else f"**{text}**"

    others = [arm for arm in others if arm in report["arms"] and arm not in runs]
    rows = [[report["arms"][arm], *(cell(arm, metric) for metric in _OF_RUNS)] for arm in (*runs, *others)]
    between = [f"{_of_run(metric, low)} to {_of_run(metric, high)}" for metric, (low, high) in predicted.items()]
    rows.insert(len(runs), ["one more run", *between])
    return markdown_table(["", *(TITLES[metric] for metric in _OF_RUNS)], rows)


def _of_run(metric: str, value: float) -> str:
    return _format(value, 1 if metric in BACKBONE_METRICS else 2)


def _in_images(report: dict[str, Any], titles: dict[str, str]) -> str:
    """A line for each arm, a column for each metric."""
    rows = [
        [report["arms"][arm], *(_format_interval(of_arm[name], 2) for name in titles)]
        for arm, of_arm in report["metrics"].items()
    ]
    return markdown_table(["", *titles.values()], rows)


def _beside_base(report: dict[str, Any]) -> str:
    """A line for each arm but the base model, a column for each metric of backbones."""
    titles, base = _backbone_titles(report), report["backbones"]["base"]
    rows = []
    for arm, of_arm in report["backbones"].items():
        if arm != "base":
            differences = [paired_difference(of_arm[name], base[name]) for name in titles]
            rows.append([report["arms"][arm], *(_format_interval((d.value, *d.interval), 1) for d in differences)])
    return markdown_table(["less the base model's", *titles.values()], rows)


def _each_seed(report: dict[str, Any], backbone: str) -> str:
    places = [i for i, (name, _) in enumerate(report["pairs"]) if name == backbone]
    titles = _backbone_titles(report)
    rows = [
        [report["arms"][arm], *(" / ".join(_format(of_arm[name][i], 1) for i in places) for name in titles)]
        for arm, of_arm in report["backbones"].items()
    ]
    return markdown_table([f"{backbone}, each seed", *titles.values()], rows)


def _backbone_titles(report: dict[str, Any]) -> dict[str, str]:
    """Those of the metrics that this run has."""
    return {name: title for name, title in BACKBONE_METRICS.items() if name in report["backbones"]["base"]}


def _shapes(report: dict[str, Any]) -> str:
    """A line for each arm that samples from names, a column for each prompt."""
    shapes = report["shapes"]
    prompts = next(iter(shapes.values()))
    rows = [
        [report["arms"][arm], *(", ".join(f"{n} {shape}" for shape, n in of[prompt].items()) for prompt in prompts)]
        for arm, of in shapes.items()
    ]
    return markdown_table(["", *(f'"{prompt}"' for prompt in prompts)], rows)
