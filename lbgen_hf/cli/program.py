"""The program `lbgen`: what its commands share, and how it starts and ends."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import lbgen_hf
from lbgen_hf.errors import UserError, report_errors

app = typer.Typer(
    help="Low-bias labelled image datasets, generated from class names alone.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would take "[default: ...]" in a help text for markup, and drop it
)

Dataset = Annotated[Path, typer.Argument(help="A folder that `lbgen generate` made.")]
Model = Annotated[str, typer.Option(help="lbgen-tiny, a folder, or a Hub id of a model or a LoRA.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. [default: the fastest]")]
BatchSize = Annotated[int, typer.Option(help="Images at a time; changes no result.")]


class _Warnings(logging.Handler):
    """Shows what the package warns of, a line each, as errors are."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"lbgen: warning: {record.getMessage()}", err=True)


_WARNINGS = _Warnings(logging.WARNING)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `lbgen`. An error that the user can fix is one line on stderr and exit code 2."""
    logging.getLogger().addHandler(logging.NullHandler())  # else Python prints what libraries log of an error too
    logging.getLogger("lbgen_hf").addHandler(_WARNINGS)
    with report_errors("lbgen"):
        try:
            code = app(arguments, prog_name="lbgen", standalone_mode=False)
        except typer.TyperException as error:
            raise UserError(error.format_message()) from None
        if code == 130:  # typer turns Ctrl-C into this code
            raise KeyboardInterrupt
        raise SystemExit(code)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"lbgen_hf {lbgen_hf.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
