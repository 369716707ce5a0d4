"""The plots of a reproduction, from its report.json and its folder of images."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from lbgen_hf.biaslab.scenes import CLASSES, POLYSEMOUS
from lbgen_hf.reproduction.adapters import RECIPES
from lbgen_hf.reproduction.orders import paired_difference

_TITLE_INCHES = 1.8  # at the left of a row of images
_LEGEND: dict[str, Any] = {"loc": "outside right", "fontsize": 7}
_AXES = {
    "mi_background": "information of class and background (nats)",
    "entropy_given_class_background": "entropy of background given the class (nats)",
    "quality": "quality (1 to 5)",
    "unbiased_accuracy": "unbiased scenes: points above the base model",
}
# What is varied to its lines: arms by how much of it they have.
_DOSES: dict[str, dict[str, dict[float, str]]] = {
    "LoRA scale": {
        "lbGen": {0: "base", 0.5: "lbgen_half", 1: "lbgen"},
        "context swap": {0: "base", 0.5: "context_swap_half", 1: "context_swap"},
    },
    "steps of fine-tuning": {
        "lbGen, fine-tuned again": {0: "base", 30: "steps_30", 60: "steps_60", 120: "steps_120", 140: "again"}
    },
    "class names in fine-tuning": {"lbGen": {4: "names_4", 8: "names_8", 16: "lbgen"}},
    "share of what is marked that the reward's captions name": {
        "lbGen": {0: "mention_0", 0.4: "mention_40", 0.8: "mention_80", 0.95: "lbgen", 1: "mention_100"}
    },
}


def save_same_noise(report: dict[str, Any], out: Path, path: Path) -> None:
    """Figures 4 and 5: a row of images for each arm that samples from class names at full scale, a column one class
    and noise."""
    rows = list(report["shapes"])
    figure = Figure(figsize=(len(CLASSES) * 0.6 + _TITLE_INCHES, len(rows) * 0.65 + 0.3), layout="constrained")
    for axes, arm in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
        width = _show_row(axes, [out / "images" / arm / class_name / "00000.png" for class_name in CLASSES])
        axes.set_xticks([width * (i + 0.5) for i in range(len(CLASSES))], CLASSES if arm == rows[-1] else [])
        axes.tick_params(length=0, labelsize=7)
        _write_title(axes, report["arms"][arm])
    figure.savefig(path, dpi=130)


def save_polysemy(report: dict[str, Any], out: Path, path: Path, columns: int = 6) -> None:
    """Figure 6: images of a polysemous name, and of each of its specific names, a row for each arm."""
    arms = list(report["shapes"])
    prompts = list(report["shapes"][arms[0]])
    width = len(prompts) * columns * 0.6 + _TITLE_INCHES
    figure = Figure(figsize=(width, len(arms) * 0.65 + 0.3), layout="constrained")
    grid = figure.subplots(len(arms), len(prompts), squeeze=False)
    for row, arm in zip(grid, arms, strict=True):
        for axes, prompt in zip(row, prompts, strict=True):
            folder = out / ("images" if prompt in POLYSEMOUS else "specific") / arm / prompt
            _show_row(axes, sorted(folder.glob("*.png"))[:columns])
            if arm == arms[0]:
                axes.set_title(f'"{prompt}"', fontsize=8)
        _write_title(row[0], report["arms"][arm])
    figure.savefig(path, dpi=130)


def _show_row(axes: Axes, files: Sequence[Path]) -> int:
    """Images beside each other; returns the width of one."""
    pixels = [np.asarray(Image.open(file)) for file in files]
    axes.imshow(np.concatenate(pixels, 1))
    axes.set_xticks([])
    axes.set_yticks([])
    return pixels[0].shape[1]


def _write_title(axes: Axes, title: str) -> None:
    """Of an arm, at the left of its row."""
    axes.set_ylabel(textwrap.fill(title, 22), fontsize=7, rotation=0, ha="right", va="center")


def save_few_shot(report: dict[str, Any], path: Path) -> bool:
    """Figure 3: transfer to novel classes against the fraction of their training images; whether there are several.

    Ablations and controls that are fine-tuned would hide the others, and are in the tables.
    """
    names = {
        float(name.removeprefix("few_shot_")): name
        for name in report["backbones"]["base"]
        if name.startswith("few_shot_0")
    } | {1.0: "transfer"}
    if len(names) == 1:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    arms = [arm for arm in report["backbones"] if arm not in RECIPES]
    for number, arm in enumerate(arms):
        values = [_estimate(report, arm, metric)[0] for metric in names.values()]
        linestyle = ("-", "--", ":", "-.")[number // 10 % 4]
        axes.plot(list(names), values, marker="o", linestyle=linestyle, label=report["arms"][arm])
    axes.set_xscale("log")
    axes.set_xlabel("fraction of the novel classes' training images")
    axes.set_ylabel("top-1 (%)")
    figure.legend(**_LEGEND)
    figure.savefig(path, dpi=120)
    return True


def save_doses(report: dict[str, Any], path: Path) -> bool:
    """Bias, diversity and what backbones learn against how much of a thing there is; whether the run has any of it."""
    metrics = ("mi_background", "entropy_given_class_background", "unbiased_accuracy")
    columns = {
        title: {label: line for label, line in lines.items() if report["arms"].keys() >= set(line.values())}
        for title, lines in _DOSES.items()
    }
    columns = {title: lines for title, lines in columns.items() if lines}
    if not columns:
        return False
    figure = Figure(figsize=(4 * len(columns), 3 * len(metrics)), layout="constrained")
    grid = figure.subplots(len(metrics), len(columns), squeeze=False, sharey="row")
    for row, metric in zip(grid, metrics, strict=True):
        row[0].set_ylabel(_AXES[metric], fontsize=8)
        for axes, (title, lines) in zip(row, columns.items(), strict=True):
            shown = {
                label: line for label, line in lines.items() if all(_has(report, arm, metric) for arm in line.values())
            }
            if not shown:  # no backbones were pre-trained on them
                axes.set_axis_off()
                continue
            axes.axhline(_above_base(report, "base", metric)[0], color="gray", linewidth=1)
            axes.set_xlabel(title, fontsize=8)
            for label, line in shown.items():
                found = [_above_base(report, arm, metric) for arm in line.values()]
                values, halves = [y[0] for y in found], [_half_width(y) for y in found]
                axes.errorbar(list(line), values, yerr=halves, marker="o", capsize=2, label=label)
    for axes in grid[0]:
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    return True


def save_frontier(report: dict[str, Any], path: Path) -> None:
    """Bias against diversity, quality, and what a backbone makes of it: good is up and to the left."""
    metrics = ("entropy_given_class_background", "quality", "unbiased_accuracy")
    height = max(4, 0.2 * len(report["arms"]))  # of the legend
    figure = Figure(figsize=(4 * len(metrics) + 3, height), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics)), metrics, strict=True):
        for number, (arm, title) in enumerate(report["arms"].items()):
            if not _has(report, arm, metric):
                continue
            x, y = _estimate(report, arm, "mi_background"), _above_base(report, arm, metric)
            halves = {"xerr": _half_width(x), "yerr": _half_width(y)}
            style = {"marker": "os^D"[number // 10 % 4], "color": f"C{number % 10}"}
            label = title if metric == "quality" else None
            axes.errorbar(x[0], y[0], **halves, **style, capsize=2, label=label)
        axes.set_xlabel(_AXES["mi_background"])
        axes.set_ylabel(_AXES[metric])
    figure.legend(**_LEGEND)
    figure.savefig(path, dpi=120)


def _has(report: dict[str, Any], arm: str, metric: str) -> bool:
    return metric in report["metrics"][arm]


def _above_base(report: dict[str, Any], arm: str, metric: str) -> list[float]:
    """A metric of images itself; one of backbones as its difference to the base model's, which has less noise.

    Returns:
        The value, and its interval's low and high end.
    """
    if metric not in report["backbones"]["base"]:
        return _estimate(report, arm, metric)
    found = paired_difference(report["backbones"][arm][metric], report["backbones"]["base"][metric])
    return [found.value, *found.interval]


def _estimate(report: dict[str, Any], arm: str, metric: str) -> list[float]:
    """Value, low, high; NaN where JSON has null."""
    return np.asarray(report["metrics"][arm][metric], dtype=float).tolist()


def _half_width(estimate: Sequence[float]) -> float:
    value, _, high = estimate
    return high - value
