"""The commands that measure images, datasets and backbones."""

from pathlib import Path
from typing import Annotated

import typer

from lbgen_hf.cli.program import BatchSize, Device, app
from lbgen_hf.errors import UserError, report_errors
from lbgen_hf.progress import show_progress


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(help="A folder of images, or a dataset's with parquet shards.")],
    scorer: Annotated[str, typer.Option(help="lbgen-tiny, qalign, vlm:<repo> or pyiqa:<metric>.")] = "lbgen-tiny",
    batch_size: BatchSize = 16,
    device: Device = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, float16 or bfloat16. [default: bfloat16 for qalign, vlm on a GPU]"),
    ] = None,
    bits: Annotated[int | None, typer.Option(help="8 or 4: quantise qalign or vlm with bitsandbytes.")] = None,
) -> None:
    """Score the quality of images in [1, 5]: a new column `quality` in a dataset's shards, or in metadata.csv."""
    with report_errors("lbgen", "What was scored is kept; run the same command to resume."):
        from lbgen_hf.devices import DTYPES, pick_device
        from lbgen_hf.rewards import quality
        from lbgen_hf.score import score_folder

        if dtype is not None and dtype not in DTYPES:
            raise UserError(f"unknown dtype {dtype!r}; choose from {', '.join(DTYPES)}")
        options = {"device": pick_device(device), "dtype": DTYPES[dtype] if dtype else None, "bits": bits}
        with show_progress("scoring") as progress:
            scored = score_folder(
                folder,
                scorer,
                lambda name: quality.load_quality_scorer(name, **options),
                batch_size=batch_size,
                progress=progress,
            )
    mean = sum(scored.scores) / len(scored.scores)
    typer.echo(
        f"{len(scored.scores)} images, {scored.known} of them scored before: "
        f"quality {mean:.2f} on average, {min(scored.scores):.2f} to {max(scored.scores):.2f}; in {scored.written_to}"
    )


@app.command()
def evaluate(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            help="Folders, Hub ids or timm names, each as CHECKPOINT or LABEL=CHECKPOINT; seeds share a label."
        ),
    ],
    benchmarks: Annotated[
        list[str],
        typer.Option(
            help="biaslab, biaslab-NAME or NAME=FOLDER, separated by commas; may be repeated. See docs/evaluation.md."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The report's folder; an unfinished one is completed.")],
    batch_size: BatchSize = 64,
    num_workers: Annotated[int, typer.Option(help="Processes that read images.")] = 0,
    device: Device = None,
    confidence_level: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    n_resamples: Annotated[int, typer.Option(help="Of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Measure transfer and bias of image backbones, and write a report with tables, intervals and plots."""
    from lbgen_hf.checks import check_number

    check_number("--confidence-level", confidence_level, above=0, below=1)
    check_number("--n-resamples", n_resamples, at_least=2)
    check_number("--seed", seed, at_least=0)
    check_number("--batch-size", batch_size, at_least=1)
    check_number("--num-workers", num_workers, at_least=0)
    with report_errors("lbgen", f"What was measured is kept in {out}; run the same command to resume."):
        from lbgen_hf.evaluation.evaluate import evaluate as measure
        from lbgen_hf.hub import quiet_loading

        quiet_loading()
        with show_progress("measuring") as progress:
            report = measure(
                checkpoints,
                benchmarks,
                out,
                device=device,
                batch_size=batch_size,
                num_workers=num_workers,
                confidence_level=confidence_level,
                n_resamples=n_resamples,
                seed=seed,
                progress=progress,
                say=lambda message: typer.echo(message, err=True),
            )
    typer.echo(f"the report is {report}")


@app.command()
def audit(
    dataset: Annotated[
        str, typer.Argument(help="An image folder, a parquet file, or a folder or repo that `datasets` opens.")
    ],
    against: Annotated[
        list[str] | None, typer.Option(help="A dataset of the same classes to compare with; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for the page index.html and audit.json.")] = None,
    split: Annotated[str | None, typer.Option(help="[default: the only one, or train]")] = None,
    image_column: Annotated[str | None, typer.Option(help="[default: the only one with images]")] = None,
    label_column: Annotated[str | None, typer.Option(help="[default: the only one with labels]")] = None,
    features: Annotated[
        str | None, typer.Option(help="A CLIP, timm or transformers model that looks at the background too.")
    ] = None,
    words: Annotated[
        Path | None, typer.Option(help="A text file, a word or phrase a line: which of them CLIP finds in the images.")
    ] = None,
    update_card: Annotated[
        bool, typer.Option("--update-card", help="Write the findings into the README.md of the dataset's folder.")
    ] = False,
    max_images: Annotated[int, typer.Option(help="Measure a uniform sample of at most so many.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Of the sample, the shuffles and the bootstrap.")] = 0,
) -> None:
    """Measure how much of the label background, place, colour, spectrum and file give away in any dataset."""
    from lbgen_hf.class_names import load_class_names
    from lbgen_hf.evaluation.audit import audit as run_audit
    from lbgen_hf.evaluation.audit.card import update_card as write_section
    from lbgen_hf.files import require_writable

    if out:
        require_writable(out)
    if update_card and not (Path(dataset) / "README.md").is_file():
        raise UserError(f"{dataset} has no README.md to update; --update-card needs a dataset folder with a card")
    with report_errors("lbgen", "Nothing is kept of an unfinished audit."), show_progress("auditing") as progress:
        found = run_audit(
            dataset,
            against=against,
            split=split,
            image_column=image_column,
            label_column=label_column,
            features=features,
            words=load_class_names(words).names if words else (),
            max_images=max_images,
            seed=seed,
            progress=progress,
            on_rejected=lambda line: typer.echo(f"lbgen: warning: cannot read {line}; rejected", err=True),
        )
    typer.echo(str(found))
    if update_card:
        typer.echo(f"updated {write_section(found, Path(dataset))}")
    if out:
        typer.echo(f"the page is {found.save(out)}; the numbers are in {out / 'audit.json'}")
