"""The command line `lbgen`: thin, one function a command. Heavy imports stay inside the commands."""

from collections.abc import Sequence
from typing import Annotated

import typer

import lbgen_hf
from lbgen_hf.errors import UserError, report_errors

app = typer.Typer(
    help="Low-bias labelled image datasets, drawn from class names alone.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `lbgen`. An error that the user can mend is one line on stderr and exit code 2."""
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


@app.command()
def classes(
    source: Annotated[
        str,
        typer.Argument(help="imagenet-1k, imagenet-100, biaslab, a text file, or a dataset folder with a ClassLabel."),
    ] = "imagenet-1k",
) -> None:
    """Print a class list: id, wnid (- where there is none) and name, separated by tabs."""
    from lbgen_hf.class_names import load_class_names

    class_names = load_class_names(source)
    for class_id, (name, wnid) in enumerate(zip(class_names.names, class_names.wnids, strict=True)):
        typer.echo(f"{class_id}\t{wnid or '-'}\t{name}")


if __name__ == "__main__":
    main()
