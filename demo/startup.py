"""Says on stdout what the start is doing, so that no half minute passes in silence. Imports nothing heavy."""

import sys
import threading
import time

EVERY_S = 10.0


class Startup:
    """Prints each step of the start, and every ten seconds how long the step has taken.

    The steps end with the block, or with `done`, whichever comes first.
    """

    def __init__(self) -> None:
        self._step = ""
        self._since = time.monotonic()
        self._done = threading.Event()

    def __enter__(self) -> "Startup":
        threading.Thread(target=self._repeat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done()

    def report(self, step: str) -> None:
        """A new step: "loading the pipeline"."""
        self._step, self._since = step, time.monotonic()
        self._print(step)

    def done(self) -> None:
        """Say no more: the page is served."""
        self._done.set()

    def _repeat(self) -> None:
        while not self._done.wait(EVERY_S):
            self._print(f"{self._step}: {time.monotonic() - self._since:.0f} s so far")

    @staticmethod
    def _print(message: str) -> None:
        sys.stdout.write(f"lbgen demo: {message}\n")
        sys.stdout.flush()
