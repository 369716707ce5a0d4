"""Raw results, and the Markdown tables made of them."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from scipy.stats import binomtest

from lbgen_hf.biaslab.measure import format_interval

RESULTS = Path(__file__).parents[1] / "tests" / "benchmarks" / "results"


def read_results(name: str) -> dict:
    """What a script measured and wrote into tests/benchmarks/results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def read_bias(path: Path) -> tuple[dict[str, str], dict[str, dict[str, dict]]]:
    """What training/measure_bias.py or measure_curve.py wrote: its options, and per LoRA its rows by metric."""
    measured = json.loads(path.read_text(encoding="utf-8"))
    tables = {lora: {row["name"]: row for row in rows} for lora, rows in measured["tables"].items()}
    return measured["options"], tables


def describe_sampling(options: dict[str, str]) -> str:
    """How the images of a measurement were sampled."""
    return (
        f"{options['images_per_class']} images of each class, {options['num_inference_steps']} steps,"
        f" guidance {options['guidance_scale']}, the same noise for all; 95 % intervals."
    )


def format_proportion(value: float, count: int) -> str:
    """A share of `count` images with its 95 % interval (Wilson): `0.990 [0.987, 0.992]`."""
    interval = binomtest(round(value * count), count).proportion_ci(method="wilson")
    return format_interval((value, interval.low, interval.high))


def format_rank_correlation(value: float, count: int) -> str:
    """Spearman's correlation over `count` images with its 95 % interval (Fisher's z, with Fieller's variance)."""
    half = 1.96 * math.sqrt(1.06 / (count - 3))
    return format_interval((value, *(math.tanh(math.atanh(value) + sign * half) for sign in (-1, 1))))


def format_ratio(timed: dict) -> str:
    """A benchmark's ratio to its baseline, with quartiles: `1.50x (1.45-1.60)`."""
    low, high = timed["ratio_spread"]
    return f"{timed['ratio']:.2f}x ({low:.2f}-{high:.2f})"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a line for each row; underscores in the header become spaces."""
    lines = [[name.replace("_", " ") for name in header], ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(page: str, texts: dict[str, str]) -> str:
    """The page with each text between its marks, `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: the page lacks a mark.
    """
    for name, text in texts.items():
        between = re.compile(rf"(<!-- {name} -->).*?(<!-- /{name} -->)", re.DOTALL)
        page, count = between.subn(lambda marks, text=text: f"{marks[1]}\n{text}\n{marks[2]}", page)
        if count != 1:
            raise ValueError(f"{count} places for {name}, where one is needed")
    return page


def fill_in(page: Path, texts: dict[str, str]) -> None:
    """Write the texts between their marks in a page."""
    page.write_text(filled(page.read_text(encoding="utf-8"), texts), encoding="utf-8")
