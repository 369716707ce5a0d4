"""Errors that the user can fix, and how every command line of the project reports them."""

import contextlib
import os
import sys
from collections.abc import Iterator


class UserError(ValueError):
    """Bad input or a full disk: the message is one line that names what was wrong and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def report_errors(program: str, on_interrupt: str = "") -> Iterator[None]:
    """Turn `UserError` into one line on stderr and exit code 2, Ctrl-C into exit code 130.

    Args:
        program: the name before ": error:".
        on_interrupt: what is kept and how to resume, said after Ctrl-C.

    Under a launcher of several processes, rank 0 alone speaks.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"{program}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print(f"{program}: interrupted. {on_interrupt}".strip(), file=sys.stderr)
        raise SystemExit(130) from None
