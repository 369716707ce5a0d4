"""The report of an evaluation: report.md, report.json and plots, several recipes side by side.

Checkpoints of one label are seeds of one recipe: their scores are averaged, resample by resample, so that an interval
is over images; the spread over seeds stands beside it. Recipes are compared with the first one on the same resamples.

A score that the decisions leave undefined, and what is made of it, is NaN; "-" in tables, null in report.json.
"""

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import lbgen_hf
from lbgen_hf.checks import check_number
from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.plots import save_bars, save_c_curves, save_few_shot_curves
from lbgen_hf.evaluation.scores import INFO, Scored, scores_of
from lbgen_hf.evaluation.statistics import Estimate, finite_or_null, mean, smallest_detectable_difference
from lbgen_hf.files import write_atomically

MEAN_OF_DATASETS = "mean of the datasets"

Key = tuple[str, str]  # benchmark, score


@dataclasses.dataclass(frozen=True)
class Score:
    """One score of one recipe.

    Attributes:
        estimate: the mean over seeds.
        per_seed: each seed's value.
    """

    estimate: Estimate
    per_seed: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Results:
    """All scores of a report.

    Attributes:
        labels: of the recipes, in the order given.
        scores: label to (benchmark, score) to the score.
        kinds: benchmark to its kind, in the order measured.
        kept_images: label to benchmark to the fingerprint of the images measured, where a head may lack some classes.
        confidence_level: of the intervals.
    """

    labels: list[str]
    scores: dict[str, dict[Key, Score]]
    kinds: dict[str, str]
    kept_images: dict[str, dict[str, str | None]]
    confidence_level: float

    def keys(self, kinds: Iterable[str], names: Iterable[str] | None = None) -> list[Key]:
        """The scores of some kinds of benchmarks, or those with some names, in the order measured."""
        wanted = [
            (benchmark, name)
            for benchmark, kind in self.kinds.items()
            if kind in set(kinds)
            for key_benchmark, name in self.scores[self.labels[0]]
            if key_benchmark == benchmark
        ]
        return [key for key in wanted if names is None or key[1] in set(names)]

    def on_other_images(self) -> list[Key]:
        """Label and benchmark of what was not measured on the first recipe's images, and so has no difference."""
        kept = self.kept_images
        return [(label, b) for label in self.labels for b in kept[label] if kept[label][b] != kept[self.labels[0]][b]]


def write_report(
    cells: list[dict], out: Path, *, confidence_level: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> Path:
    """Score cells and write report.md, report.json and plots/.

    Returns:
        The path of report.md.

    Raises:
        UserError: seeds of one recipe were measured on different images.
    """
    check_number("confidence_level", confidence_level, above=0, below=1)
    scored = [scores_of(cell["kind"], cell["data"], n_resamples=n_resamples, seed=seed) for cell in cells]
    results = _collect(cells, scored, confidence_level)
    plots = out / "plots"
    plots.mkdir(exist_ok=True)
    saved = [
        save_bars(results, ("accuracy", "transfer"), ("accuracy",), plots / "accuracy.png"),
        save_bars(results, _BIAS_KINDS, _BIAS_SCORES, plots / "bias.png"),
        save_few_shot_curves(results, cells, plots / "few_shot.png"),
        save_c_curves(cells, plots / "c_curves.png"),
    ]
    report = finite_or_null(_as_json(results, cells, scored))
    write_atomically(out / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    path = out / "report.md"
    write_atomically(path, _as_markdown(results, cells, scored, [plot for plot in saved if plot], out))
    return path


_BIAS_KINDS = ("texture_inclination", "context_bias", "background_gap")
_BIAS_SCORES = tuple(name for name, info in INFO.items() if not info.detail and "accuracy" not in name)


def _collect(cells: list[dict], scored: list[Scored], confidence_level: float) -> Results:
    labels = list(dict.fromkeys(cell["label"] for cell in cells))
    kinds = {cell["benchmark"]: cell["kind"] for cell in cells}
    scores: dict[str, dict[Key, Score]] = {label: {} for label in labels}
    kept_images: dict[str, dict[str, str | None]] = {label: {} for label in labels}
    for cell in cells:
        kept = cell["details"].get("kept_images")
        if kept_images[cell["label"]].setdefault(cell["benchmark"], kept) != kept:
            raise UserError(
                f"the checkpoints of {cell['label']} know different classes of {cell['benchmark']}, so they were "
                "measured on different images; give them different labels"
            )
    for label in labels:
        of_label = [(cell, s) for cell, s in zip(cells, scored, strict=True) if cell["label"] == label]
        for benchmark in kinds:
            seeds = [s for cell, s in of_label if cell["benchmark"] == benchmark]
            for name in seeds[0].estimates:
                scores[label][benchmark, name] = _score([seed.estimates[name] for seed in seeds])
        for name in ("accuracy", "knn_accuracy"):
            datasets = [scores[label][b, name] for b, kind in kinds.items() if kind == "transfer"]
            if len(datasets) > 1:
                per_seed = tuple(float(np.mean(values)) for values in zip(*(d.per_seed for d in datasets), strict=True))
                scores[label][MEAN_OF_DATASETS, name] = Score(mean([d.estimate for d in datasets]), per_seed)
    if sum(kind == "transfer" for kind in kinds.values()) > 1:
        kinds[MEAN_OF_DATASETS] = "transfer"
    return Results(labels, scores, kinds, kept_images, confidence_level)


def _score(estimates: list[Estimate]) -> Score:
    return Score(mean(estimates), tuple(estimate.value for estimate in estimates))


def differences(results: Results) -> list[dict]:
    """Each recipe's scores minus the first recipe's, on the same resamples of the same images."""
    first = results.labels[0]
    on_other_images = set(results.on_other_images())
    rows = []
    for label in results.labels[1:]:
        for key, score in results.scores[label].items():
            if (label, key[0]) in on_other_images:
                continue
            difference = score.estimate - results.scores[first][key].estimate
            low, high = difference.interval(results.confidence_level)
            rows.append(
                {
                    "benchmark": key[0],
                    "score": key[1],
                    "label": label,
                    "minus": first,
                    "difference": difference.value,
                    "interval": (low, high),
                    "excludes_zero": low > 0 or high < 0 if math.isfinite(difference.value) else None,
                    "smallest_detectable": smallest_detectable_difference(
                        difference.standard_error, paired=True, confidence_level=results.confidence_level
                    ),
                }
            )
    return rows


def _as_json(results: Results, cells: list[dict], scored: list[Scored]) -> dict:
    rows = [
        {
            "benchmark": benchmark,
            "score": name,
            "label": label,
            "value": score.estimate.value,
            "interval": score.estimate.interval(results.confidence_level),
            "standard_error": score.estimate.standard_error,
            "smallest_detectable_difference": smallest_detectable_difference(
                score.estimate.standard_error, confidence_level=results.confidence_level
            ),
            "seeds": len(score.per_seed),
            "per_seed": score.per_seed,
        }
        for label in results.labels
        for (benchmark, name), score in results.scores[label].items()
    ]
    without_data = [
        {**{key: value for key, value in cell.items() if key != "data"}, "counts": s.counts}
        for cell, s in zip(cells, scored, strict=True)
    ]
    return {
        "lbgen_hf": lbgen_hf.__version__,
        "confidence_level": results.confidence_level,
        "scores": rows,
        "differences": differences(results),
        "cells": without_data,
    }


def _as_markdown(results: Results, cells: list[dict], scored: list[Scored], plots: list[Path], out: Path) -> str:
    percent = f"{100 * results.confidence_level:g} %"
    sections = [
        "# Evaluation",
        f"Each score with its {percent} interval, a percentile bootstrap over images. Recipes with several seeds show "
        "their mean; the interval is over images, the standard deviation over seeds is behind the plus-minus sign. "
        'A score that the decisions leave undefined, as a ratio to no right answers, is "-"; so is a mean with it.',
        _table(results, "Accuracy", results.keys(["accuracy"])),
        _table(results, "Transfer: logistic regression", results.keys(["transfer"], ["accuracy"])),
        _table(results, "Transfer: nearest neighbours", results.keys(["transfer"], ["knn_accuracy"])),
        _table(results, "Few-shot transfer", results.keys(["few_shot"])),
        _table(results, "Bias", results.keys(_BIAS_KINDS, _BIAS_SCORES)),
        _difference_table(results),
        _resolution(results),
        _counts(cells, scored),
        _chosen_c(cells),
        _provenance(cells),
        "\n\n".join(f"![{plot.stem.replace('_', ' ')}]({plot.relative_to(out).as_posix()})" for plot in plots),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _table(results: Results, title: str, keys: list[Key]) -> str:
    if not keys:
        return ""
    header = ["recipe", "seeds", *(f"{benchmark}: {_title(name)}" for benchmark, name in keys)]
    rows = []
    for label in results.labels:
        scores = [results.scores[label][key] for key in keys]
        rows.append([label, str(len(scores[0].per_seed)), *(_cell(s, results.confidence_level) for s in scores)])
    return f"## {title}\n\n{markdown_table(header, rows)}"


def _title(name: str) -> str:
    info = INFO[name]
    arrow = "↑" if info.better == "higher" else "↓"
    return f"{info.title} ({info.unit}) {arrow}"


def _cell(score: Score, confidence_level: float) -> str:
    spread = f" ± {np.std(score.per_seed, ddof=1):.1f}" if len(score.per_seed) > 1 else ""
    return _with_interval(score.estimate.value, score.estimate.interval(confidence_level), spread=spread)


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.1f}" if math.isfinite(value) else "-"


def _with_interval(value: float, interval: tuple[float, float], sign: str = "", spread: str = "") -> str:
    low, high = (_number(bound, sign) for bound in interval)
    return f"{_number(value, sign)}{spread} [{low}, {high}]" if math.isfinite(value) else "-"


def _difference_table(results: Results) -> str:
    rows = [
        [
            row["label"],
            f"{row['benchmark']}: {INFO[row['score']].title}",
            _with_interval(row["difference"], row["interval"], sign="+"),
            {True: "yes", False: "no", None: "-"}[row["excludes_zero"]],
        ]
        for row in differences(results)
        if not INFO[row["score"]].detail
    ]
    omitted = ", ".join(f"{label} on {benchmark}" for label, benchmark in results.on_other_images())
    header = ["recipe", "score", "difference in points", "interval excludes 0"]
    parts = [
        f"## Differences from {results.labels[0]}, paired by image",
        markdown_table(header, rows) if rows else "",
        f"Not compared, as the classifier knows other classes, so that images differ: {omitted}." if omitted else "",
    ]
    return "\n\n".join(part for part in parts if part) if rows or omitted else ""


def _resolution(results: Results) -> str:
    """What each score could see at this n."""
    paired = defaultdict(list)
    for row in differences(results):
        if math.isfinite(row["smallest_detectable"]):
            paired[row["benchmark"], row["score"]].append(row["smallest_detectable"])
    first = results.scores[results.labels[0]]
    rows = []
    for (benchmark, name), score in first.items():
        if INFO[name].detail:
            continue
        unpaired = smallest_detectable_difference(
            score.estimate.standard_error, confidence_level=results.confidence_level
        )
        seen = max(paired[benchmark, name], default=math.nan)
        rows.append([f"{benchmark}: {INFO[name].title}", _number(unpaired), _number(seen)])
    text = (
        "The smallest true difference, in points, that a two-sided test would find with a power of 80 % at this number "
        "of images: of two independent recipes, and of the recipes here, paired by image (the largest of several). "
        "Differences between training runs come on top."
    )
    return f"## What could be seen\n\n{text}\n\n{markdown_table(['score', 'independent', 'paired'], rows)}"


def _counts(cells: list[dict], scored: list[Scored]) -> str:
    """What belongs beside the scores: decisions, sizes, the accuracies that ratios are made of."""
    rows = []
    for cell, s in zip(cells, scored, strict=True):
        detail = [f"{INFO[name].title} {e.value:.1f} %" for name, e in s.estimates.items() if INFO[name].detail]
        counts = [f"{name.replace('_', ' ')} {count}" for name, count in s.counts.items()]
        rows.append([cell["label"], cell["benchmark"], ", ".join(detail + counts)])
    return f"## Counts\n\n{markdown_table(['recipe', 'benchmark', 'counts'], rows)}"


def _chosen_c(cells: list[dict]) -> str:
    rows = []
    for cell in cells:
        details = cell["details"]
        if "c" in details:
            chosen = details["c"] if isinstance(details["c"], list) else [details["c"]]
            at_edge = "**yes**" if details["c_at_edge"] else "no"
            rows.append([cell["label"], cell["benchmark"], ", ".join(f"{c:.3g}" for c in chosen), at_edge])
    if not rows:
        return ""
    header = ["recipe", "benchmark", "C", "at an edge of the grid"]
    return f"## Regularisation of the logistic regressions\n\n{markdown_table(header, rows)}"


def _provenance(cells: list[dict]) -> str:
    rows = list(dict.fromkeys((cell["label"], cell["checkpoint"], cell["weights_sha256"][:12]) for cell in cells))
    worlds = {(world["version"], world["hash"]) for cell in cells if (world := cell.get("world"))}
    lines = [f"biaslab's world: version {version}, hash {digest}." for version, digest in sorted(worlds)]
    table = markdown_table(["recipe", "checkpoint", "SHA-256 of the weights"], [list(row) for row in rows])
    return "\n\n".join(["## Checkpoints", table, *lines])


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
