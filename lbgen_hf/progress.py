"""Progress of long work: a bar on a terminal, a line every 30 s elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")
_SECONDS_BETWEEN_LINES = 30


class _Lines:
    """tqdm's file where stderr is no terminal: each state of the bar is a line of its own."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(items: Iterable[T], *, total: int, done: int = 0, name: str = "", disable: bool = False) -> Iterator[T]:
    """Iterate and show how far it is on stderr.

    Args:
        items: what is still to do.
        total: how many there are with those already done.
        done: how many were done before.
        name: said before the numbers.
        disable: show nothing.
    """
    options = {"initial": done, "total": total, "desc": name or None, "disable": disable}
    if not sys.stderr.isatty():
        seconds = _SECONDS_BETWEEN_LINES
        options |= {"file": _Lines(), "mininterval": seconds, "maxinterval": seconds, "miniters": 1, "ncols": 0}
    return iter(tqdm(items, **options))
