"""How long work tells how far it is: a bar on a terminal, a line every half minute anywhere else."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
LINE_EVERY_S = 30.0

Progress = Callable[[int, int | None], None]
"""Told how many of how many are done; of None where only the end tells."""

State = tuple[float, int, int | None]  # when, how many were done, of how many: 0 before the first call


@contextlib.contextmanager
def show_progress(what: str, unit: str = "images") -> Iterator[Progress]:
    """Show on stderr how far some work is; of the processes of one launcher, rank 0 alone does.

    The bar appears when the work first tells how far it is, so that an error before that stays one line.

    Args:
        what: the work: "generating".
        unit: of what is counted.
    """
    if os.environ.get("RANK", "0") != "0":
        yield lambda done, total: None
    elif sys.stderr.isatty():
        with _bar(what, unit) as show:
            yield show
    else:
        with _lines(what, unit) as show:
            yield show


@contextlib.contextmanager
def _bar(what: str, unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task) -> Text:
            return Text(_format_rate(task.speed, unit) if task.speed else f"- {unit}/s")

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn()]
    bar = Progress(*columns, console=Console(stderr=True), speed_estimate_period=300)
    task = bar.add_task(what, total=None)

    def show(done: int, total: int | None) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


@contextlib.contextmanager
def _lines(what: str, unit: str) -> Iterator[Progress]:
    states: list[State] = [(time.monotonic(), 0, 0)]
    stop = threading.Event()

    def show(done: int, total: int | None) -> None:
        states[1:] = [*states[1:2], (time.monotonic(), done, total)]

    def speak() -> None:
        while not stop.wait(LINE_EVERY_S):
            print(f"{what}: {_describe(states, unit)}", file=sys.stderr, flush=True)

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield show
    finally:
        stop.set()
        speaker.join()


def _describe(states: list[State], unit: str) -> str:
    """How far, how fast since the first state that was told, and how long it will take."""
    now, done, total = states[-1]
    if total == 0:
        return f"starting, for {time.monotonic() - now:.0f} s"
    begin, first_done, _ = states[1]
    text = f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
    if done == first_done:
        return text
    rate = (done - first_done) / (now - begin)
    left = f", {(total - done) / rate / 60:.0f} min left" if total else ""
    return f"{text}, {_format_rate(rate, unit)}{left}"


def _format_rate(per_second: float, unit: str) -> str:
    return f"{per_second:.2f} {unit}/s" if per_second >= 0.1 else f"{60 * per_second:.2f} {unit}/min"


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
    from tqdm.auto import tqdm

    options = {"initial": done, "total": total, "desc": name or None, "disable": disable}
    if not sys.stderr.isatty():
        seconds = LINE_EVERY_S
        options |= {"file": _Lines(), "mininterval": seconds, "maxinterval": seconds, "miniters": 1, "ncols": 0}
    return iter(tqdm(items, **options))
