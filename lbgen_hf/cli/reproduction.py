"""The command that makes the paper's comparisons again."""

from pathlib import Path
from typing import Annotated

import typer

from lbgen_hf.cli.program import Device, app
from lbgen_hf.errors import report_errors
from lbgen_hf.progress import show_progress


@app.command()
def reproduce(
    out: Annotated[Path, typer.Option(help="The report's folder; an unfinished one is completed.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer images, arms and steps, one backbone: minutes, wide intervals.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="Of each backbone, at least 2.")] = 3,
    lora: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER: one more adapter of lbgen-tiny to compare; may be repeated.")
    ] = None,
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch",
            help="With adapters that are fine-tuned first (table 4, controls, other captions): 7 hours on 2 cores.",
        ),
    ] = False,
    device: Device = None,
) -> None:
    """Compare pre-training data in biaslab, as the paper's tables do, and test what these predict."""
    with report_errors("lbgen", f"Finished cells are kept in {out}; run the same command to resume."):
        from lbgen_hf.checks import check_number
        from lbgen_hf.devices import pick_device

        check_number("--seeds", seeds, at_least=2, integer=True)
        pick_device(device)
        from lbgen_hf.hub import quiet_loading
        from lbgen_hf.reproduction import cells
        from lbgen_hf.reproduction.reproduce import reproduce as run

        quiet_loading()
        with show_progress("reproducing", "cells") as progress:
            report = run(
                out,
                cells.QUICK if quick else None,
                num_seeds=seeds,
                loras=lora or (),
                from_scratch=from_scratch,
                device=device,
                progress=progress,
                say=lambda message: typer.echo(message, err=True),
            )
    typer.echo(f"the report is {report}")
