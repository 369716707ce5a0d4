"""The plots of a reproduction."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from lbgen_hf.biaslab.scenes import CLASSES, POLYSEMOUS
from lbgen_hf.reproduction.orders import Difference
from lbgen_hf.reproduction.results import Results

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
    "steps of fine-tuning": {"lbGen": {0: "base", 30: "steps_30", 60: "steps_60", 120: "steps_120"}},
    "class names in fine-tuning": {"lbGen": {4: "names_4", 8: "names_8", 16: "lbgen"}},
    "share of what is marked that the reward's captions name": {
        "lbGen": {0: "mention_0", 0.4: "mention_40", 0.8: "mention_80", 0.95: "lbgen", 1: "mention_100"}
    },
}


def save_same_noise(results: Results, images: Path, path: Path) -> None:
    """Figures 4 and 5: a row of images for each arm that samples from class names at full scale, a column one class
    and noise."""
    rows = [name for name, arm in results.arms.items() if arm.is_plain_sampling]
    figure = Figure(figsize=(len(CLASSES) * 0.6 + 1, len(rows) * 0.65 + 0.3), layout="constrained")
    for axes, name in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
        files = [images / name / class_name / "00000.png" for class_name in CLASSES]
        pixels = [np.asarray(Image.open(file)) for file in files]
        width = pixels[0].shape[1]
        axes.imshow(np.concatenate(pixels, 1))
        axes.set_xticks([width * (i + 0.5) for i in range(len(CLASSES))], CLASSES if name == rows[-1] else [])
        axes.set_yticks([])
        axes.tick_params(length=0, labelsize=7)
        axes.set_ylabel(results.arms[name].title, fontsize=7)
    figure.savefig(path, dpi=130)


def save_polysemy(results: Results, out: Path, path: Path, columns: int = 6) -> None:
    """Figure 6: images of a polysemous name, and of each of its specific names, a row for each arm."""
    arms = list(results.shapes)
    prompts = list(results.shapes[arms[0]])
    figure = Figure(figsize=(len(prompts) * columns * 0.6 + 1, len(arms) * 0.65 + 0.3), layout="constrained")
    grid = figure.subplots(len(arms), len(prompts), squeeze=False)
    for row, arm in zip(grid, arms, strict=True):
        for axes, prompt in zip(row, prompts, strict=True):
            folder = out / ("images" if prompt in POLYSEMOUS else "specific") / arm / prompt
            files = sorted(folder.glob("*.png"))[:columns]
            axes.imshow(np.concatenate([np.asarray(Image.open(file)) for file in files], 1))
            axes.set_xticks([])
            axes.set_yticks([])
            if arm == arms[0]:
                axes.set_title(f'"{prompt}"', fontsize=8)
        row[0].set_ylabel(results.arms[arm].title, fontsize=7)
    figure.savefig(path, dpi=130)


def save_few_shot(results: Results, path: Path) -> bool:
    """Figure 3: transfer to novel classes against the fraction of their training images; whether there are several.

    Ablations and controls that are fine-tuned would hide the others, and are in the tables.
    """
    names = {
        float(name.removeprefix("few_shot_")): name
        for name in next(iter(results.backbones.values()))
        if name.startswith("few_shot_0")
    } | {1.0: "transfer"}
    if len(names) == 1:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    arms = {name: arm for name, arm in results.arms.items() if arm.recipe is None}
    for number, (name, arm) in enumerate(arms.items()):
        values = [results.estimate(name, metric).value for metric in names.values()]
        axes.plot(list(names), values, marker="o", linestyle=("-", "--", ":", "-.")[number // 10 % 4], label=arm.title)
    axes.set_xscale("log")
    axes.set_xlabel("fraction of the novel classes' training images")
    axes.set_ylabel("top-1 (%)")
    figure.legend(**_LEGEND)
    figure.savefig(path, dpi=120)
    return True


def save_doses(results: Results, path: Path) -> bool:
    """Bias, diversity and what backbones learn against how much of a thing there is; whether the run has any of it."""
    metrics = ("mi_background", "entropy_given_class_background", "unbiased_accuracy")
    columns = {
        title: {label: line for label, line in lines.items() if results.arms.keys() >= set(line.values())}
        for title, lines in _DOSES.items()
    }
    columns = {title: lines for title, lines in columns.items() if lines}
    if not columns:
        return False
    figure = Figure(figsize=(4 * len(columns), 3 * len(metrics)), layout="constrained")
    grid = figure.subplots(len(metrics), len(columns), squeeze=False, sharex="col", sharey="row")
    for row, metric in zip(grid, metrics, strict=True):
        row[0].set_ylabel(_AXES[metric], fontsize=8)
        for axes, lines in zip(row, columns.values(), strict=True):
            axes.axhline(_above_base(results, "base", metric).value, color="gray", linewidth=1)
            for label, line in lines.items():
                found = [_above_base(results, arm, metric) for arm in line.values()]
                values, halves = [y.value for y in found], [_half_width(y) for y in found]
                axes.errorbar(list(line), values, yerr=halves, marker="o", capsize=2, label=label)
    for axes, title in zip(grid[-1], columns, strict=True):
        axes.set_xlabel(title, fontsize=8)
    grid[0, 0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    return True


def _above_base(results: Results, arm: str, metric: str) -> Difference:
    """A metric of images itself; one of backbones as its difference to the base model's, which has less noise."""
    if metric in results.backbones[arm]:
        return results.difference(arm, "base", metric)
    return results.estimate(arm, metric)


def _half_width(difference: Difference) -> float:
    return difference.interval[1] - difference.value


def save_frontier(results: Results, path: Path) -> None:
    """Bias against diversity, quality, and what a backbone makes of it: good is up and to the left."""
    metrics = ("entropy_given_class_background", "quality", "unbiased_accuracy")
    height = max(4, 0.2 * len(results.arms))  # of the legend
    figure = Figure(figsize=(4 * len(metrics) + 3, height), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics)), metrics, strict=True):
        for number, (name, arm) in enumerate(results.arms.items()):
            x = results.estimate(name, "mi_background")
            y = _above_base(results, name, metric)
            label = arm.title if metric == "quality" else None
            marker = "os^D"[number // 10 % 4]
            halves = {"xerr": _half_width(x), "yerr": _half_width(y)}
            axes.errorbar(x.value, y.value, **halves, marker=marker, capsize=2, label=label)
        axes.set_xlabel(_AXES["mi_background"])
        axes.set_ylabel(_AXES[metric])
    figure.legend(**_LEGEND)
    figure.savefig(path, dpi=120)
