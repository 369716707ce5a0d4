"""The plots of a reproduction."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from lbgen_hf.biaslab.scenes import CLASSES, POLYSEMOUS
from lbgen_hf.reproduction.results import Results

_LEGEND: dict[str, Any] = {"loc": "outside right", "fontsize": 7}


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
    """Figure 3: transfer to novel classes against the fraction of their training images; whether there are several."""
    names = {
        float(name.removeprefix("few_shot_")): name
        for name in next(iter(results.backbones.values()))
        if name.startswith("few_shot_0")
    } | {1.0: "transfer"}
    if len(names) == 1:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, arm) in enumerate(results.arms.items()):
        values = [results.estimate(name, metric).value for metric in names.values()]
        axes.plot(list(names), values, marker="o", linestyle=("-", "--", ":", "-.")[number // 10 % 4], label=arm.title)
    axes.set_xscale("log")
    axes.set_xlabel("fraction of the novel classes' training images")
    axes.set_ylabel("top-1 (%)")
    figure.legend(**_LEGEND)
    figure.savefig(path, dpi=120)
    return True


def save_frontier(results: Results, path: Path) -> None:
    """Bias against diversity, quality, and what a backbone makes of it: good is up and to the left."""
    panels = {
        "entropy_given_class_background": "entropy of background given the class (nats)",
        "quality": "quality (1 to 5)",
        "unbiased_accuracy": "unbiased scenes: points above the base model",
    }
    figure = Figure(figsize=(4 * len(panels) + 2, 4), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for number, (name, arm) in enumerate(results.arms.items()):
            x = results.estimate(name, "mi_background")
            of_backbones = metric in results.backbones[name]
            y = results.difference(name, "base", metric) if of_backbones else results.estimate(name, metric)
            label = arm.title if metric == "quality" else None
            marker = "os^D"[number // 10 % 4]
            half = [estimate.interval[1] - estimate.value for estimate in (x, y)]
            axes.errorbar(x.value, y.value, xerr=half[0], yerr=half[1], marker=marker, capsize=2, label=label)
        axes.set_xlabel("information of class and background (nats)")
        axes.set_ylabel(title)
    figure.legend(**_LEGEND)
    figure.savefig(path, dpi=120)
