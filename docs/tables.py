"""Markdown tables, and the places in a page where a script writes them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path


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
