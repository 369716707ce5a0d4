"""Markdown tables of what was measured, and the places in a page where a script writes them."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "tests" / "benchmarks" / "results"


def read_benchmark(name: str) -> dict:
    """What a script of tests/benchmarks wrote."""
    return json.loads((BENCHMARKS / f"{name}.json").read_text())


def format_ratio(timed: dict) -> str:
    """A benchmark's ratio to its baseline, with quartiles: `1.50x (1.45-1.60)`."""
    low, high = timed["ratio_spread"]
    return f"{timed['ratio']:.2f}x ({low:.2f}-{high:.2f})"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a line for each row; underscores in the header become spaces."""
    lines = [[name.replace("_", " ") for name in header], ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fill_in(page: Path, texts: dict[str, str]) -> None:
    """Put each text between its marks, `<!-- name -->` and `<!-- /name -->`."""
    content = page.read_text()
    for name, text in texts.items():
        between = re.compile(rf"(<!-- {name} -->).*?(<!-- /{name} -->)", re.DOTALL)
        content = between.sub(lambda marks, text=text: f"{marks[1]}\n{text}\n{marks[2]}", content)
    page.write_text(content)
