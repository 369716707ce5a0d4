"""The command that opens the demo."""

import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import typer

import lbgen_hf
from lbgen_hf.cli.program import Model, app
from lbgen_hf.errors import UserError


@app.command()
def demo(
    model: Model = "lbgen-tiny",
    lora: Annotated[
        list[str] | None,
        typer.Option(help="A LoRA to compare with it; may be repeated. [default: lbgen-tiny's own]"),
    ] = None,
    scorer: Annotated[
        str | None, typer.Option(help="A quality scorer, as in `lbgen score`. [default: lbgen-tiny's own, else none]")
    ] = None,
    dataset: Annotated[list[Path] | None, typer.Option(help="A generated dataset to look at; may be repeated.")] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="[default: the first free one from 7860]")] = None,
) -> None:
    """Open a page that compares a model with its LoRAs, and shows datasets and measured bias."""
    from lbgen_hf.checks import check_address

    check_address(host, port)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the demo needs gradio: pip install 'lbgen_hf[demo]'")
    sys.path.insert(0, str(_program_folder("demo")))
    from startup import Startup

    with Startup() as startup:
        startup.report("importing the libraries; all of the start takes about half a minute")
        from lbgen_hf.hub import quiet_loading

        quiet_loading()
        from app import launch

        launch(model, lora or [], scorer, dataset or [], startup, server_name=host, server_port=port)


def _program_folder(name: str) -> Path:
    """A folder of programs: in the wheel it lies inside the package, in a checkout beside it."""
    package = Path(lbgen_hf.__file__).parent
    packed = package / f"_{name}"
    return packed if packed.is_dir() else package.parent / name
