"""The plots of a report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from lbgen_hf.evaluation.scores import INFO

if TYPE_CHECKING:
    from lbgen_hf.evaluation.report import Results


def save_bars(results: Results, kinds: Iterable[str], names: Iterable[str], path: Path) -> Path | None:
    """Bars with intervals, none where a score is undefined; None where there are no such scores."""
    keys = results.keys(kinds, names)
    if not keys:
        return None
    figure = Figure(figsize=(2 + 1.5 * len(keys), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(results.labels)
    for i, label in enumerate(results.labels):
        estimates = [results.scores[label][key].estimate for key in keys]
        values = np.array([estimate.value for estimate in estimates])
        intervals = np.array([estimate.interval(results.confidence_level) for estimate in estimates])
        errors = np.abs(intervals.T - values)
        places = np.arange(len(keys)) + (i - (len(results.labels) - 1) / 2) * width
        axes.bar(places, values, width, yerr=errors, capsize=3, label=label)
    titles = [f"{benchmark}\n{INFO[name].title}" for benchmark, name in keys]
    axes.set_xticks(range(len(keys)), titles, rotation=30, ha="right", fontsize=8)
    axes.set_ylabel("% or points")
    axes.axhline(0, color="black", linewidth=0.8)
    return _save(figure, axes, path)


def save_few_shot_curves(results: Results, cells: list[dict], path: Path) -> Path | None:
    """Accuracy against the fraction of the training images, a line a recipe and dataset, with intervals."""
    fractions = {
        cell["benchmark"]: (cell["details"]["dataset"], cell["details"]["fraction"])
        for cell in cells
        if cell["kind"] == "few_shot"
    }
    if not fractions:
        return None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    datasets = list(dict.fromkeys(dataset for dataset, _ in fractions.values()))
    for label in results.labels:
        for dataset in datasets:
            points = sorted((f, benchmark) for benchmark, (d, f) in fractions.items() if d == dataset)
            estimates = [results.scores[label][benchmark, "few_shot_accuracy"].estimate for _, benchmark in points]
            values = np.array([estimate.value for estimate in estimates])
            intervals = np.array([estimate.interval(results.confidence_level) for estimate in estimates])
            errors = np.abs(intervals.T - values)
            name = label if len(datasets) == 1 else f"{label}, {dataset}"
            axes.errorbar([f for f, _ in points], values, yerr=errors, marker="o", capsize=3, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("fraction of the training images")
    axes.set_ylabel("top-1 (%)")
    return _save(figure, axes, path)


def save_c_curves(cells: list[dict], path: Path) -> Path | None:
    """Validation accuracy against C, the chosen one marked."""
    curves = [cell for cell in cells if cell["kind"] == "transfer"]
    if not curves:
        return None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for cell in curves:
        c, accuracy = np.array(cell["details"]["c_curve"]).T
        (line,) = axes.plot(c, accuracy, label=f"{cell['label']}, {cell['benchmark']}")
        chosen = cell["details"]["c"]
        axes.plot(chosen, accuracy[c == chosen], "o", color=line.get_color())
    axes.set_xscale("log")
    axes.set_xlabel("C")
    axes.set_ylabel("validation top-1 (%)")
    return _save(figure, axes, path)


def _save(figure: Figure, axes, path: Path) -> Path:
    if len(axes.get_legend_handles_labels()[0]) <= 20:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    return path
