"""Errors that the user can fix, and how every command line of the project reports them."""

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

_SECONDS_FOR_RANK_0 = 3.0


class UserError(ValueError):
    """Bad input or a full disk: the message is one line that names what was wrong and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def report_errors(program: str, on_interrupt: str = "") -> Iterator[None]:
    """Turn `UserError` and `OSError` into one line on stderr and exit code 2, Ctrl-C into exit code 130.

    What is printed is escaped where the locale lacks its letters; a path that a library cannot take for that reason is
    an error of one line too.

    Args:
        program: the name before ": error:".
        on_interrupt: what is kept and how to resume, said after Ctrl-C.

    Under a launcher of several processes, rank 0 speaks at once; another only if the launcher has not ended it after a
    few seconds, for then the error is its own.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except UserError as error:
        _end(f"{program}: error: {error}", 2)
    except UnicodeEncodeError as error:
        letters = error.object[error.start : error.end]
        hint = "run this with PYTHONUTF8=1, or rename the file or folder"
        _end(f"{program}: error: the locale or UTF-8 does not have the letters {letters!r} of a path; {hint}", 2)
    except OSError as error:  # of a folder that may not be read, or a full disk
        _end(f"{program}: error: {error.filename or 'the system'}: {error.strerror or first_line(error)}", 2)
    except KeyboardInterrupt:
        _end(f"{program}: interrupted. {on_interrupt}".strip(), 130)


def _end(message: str, code: int) -> NoReturn:
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(_SECONDS_FOR_RANK_0)
        message = f"[rank {rank}] {message}"
    print(message, file=sys.stderr)
    raise SystemExit(code) from None
