"""The command line `lbgen`: thin, one function a command. Heavy imports stay inside the commands."""

import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import lbgen_hf
from lbgen_hf.errors import UserError, report_errors
from lbgen_hf.progress import show_progress

app = typer.Typer(
    help="Low-bias labelled image datasets, generated from class names alone.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would take "[default: ...]" in a help text for markup, and drop it
)

_Dataset = Annotated[Path, typer.Argument(help="A folder that `lbgen generate` made.")]
_Model = Annotated[str, typer.Option(help="lbgen-tiny, a folder, or a Hub id of a model or a LoRA.")]
_Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. [default: the fastest]")]
_BatchSize = Annotated[int, typer.Option(help="Images at a time; changes no result.")]
_KEPT = "Finished shards are kept in {}; run the same command to resume."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `lbgen`. An error that the user can fix is one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # class names in a locale that does not have their letters
            stream.reconfigure(errors="backslashreplace")
    with report_errors("lbgen"):
        try:
            code = app(arguments, prog_name="lbgen", standalone_mode=False)
        except typer.TyperException as error:
            raise UserError(error.format_message()) from None
        except OSError as error:
            raise UserError(f"{error.filename or 'the system'}: {error.strerror or error}") from error
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
def quickstart(
    out: Annotated[Path, typer.Option(help="The dataset folder.")] = Path("lbgen-quickstart"),
    seed: Annotated[int, typer.Option(help="Base seed.")] = 0,
) -> None:
    """Generate a small labelled dataset with the shipped model, and show how biased it is beside the base model's."""
    with report_errors("lbgen", _KEPT.format(out)):
        from lbgen_hf.hub import quiet_loading
        from lbgen_hf.quickstart import run_quickstart

        quiet_loading()
        with show_progress("generating") as progress:
            made = run_quickstart(out, seed, progress)
    if made.base:
        from lbgen_hf.biaslab.measure import format_comparison

        typer.echo(f"lbGen's images are in {out}, the base model's, from the same noise, in {made.base}.")
        typer.echo("What an independent judge sees in them (mutual information of class and context, in nats):\n")
        typer.echo(f"{format_comparison(made.results)}\n")
    _say_how_to_load(out)


@app.command()
def generate(
    out: Annotated[Path, typer.Option(help="The dataset folder; an unfinished one is completed.")],
    model: _Model = "lbgen-tiny",
    revision: Annotated[str | None, typer.Option(help="Of the model on the Hub: a branch, tag or commit.")] = None,
    variant: Annotated[str | None, typer.Option(help="Of the model's weight files, such as fp16.")] = None,
    lora: Annotated[str | None, typer.Option(help="A LoRA file, folder or Hub id.")] = None,
    classes: Annotated[str | None, typer.Option(help="As in `lbgen classes`. [default: the model's own]")] = None,
    images_per_class: Annotated[int, typer.Option(help="The paper's ImageNet-1k has 1300.")] = 8,
    seed: Annotated[int, typer.Option(help="Base seed.")] = 0,
    preset: Annotated[str, typer.Option(help="paper or fast; the options below overrule it.")] = "paper",
    scheduler: Annotated[
        str | None, typer.Option(help="pndm, dpmpp-2m, ddim, unipc, euler, or a diffusers class.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance; none up to 1.")] = None,
    guidance_start: Annotated[float | None, typer.Option(help="Guide from this fraction of the steps on.")] = None,
    guidance_stop: Annotated[float | None, typer.Option(help="Guide up to this fraction of the steps.")] = None,
    cache_interval: Annotated[
        int | None, typer.Option(help="Run the UNet's deep half at every n-th step only.")
    ] = None,
    batch_size: _BatchSize = 16,
    device: _Device = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16. [default: float16 on CUDA, else float32]")
    ] = None,
    compile_unet: Annotated[bool, typer.Option("--compile", help="Compile the UNet.")] = False,
    image_format: Annotated[str, typer.Option("--format", help="jpeg, webp or png.")] = "jpeg",
    image_quality: Annotated[int, typer.Option(help="Of jpeg and webp, 1 to 100.")] = 95,
    resolution: Annotated[int | None, typer.Option(help="Resize to this edge before storing.")] = None,
    min_clip_score: Annotated[float | None, typer.Option(help="Resample below this CLIP score.")] = None,
    min_quality: Annotated[float | None, typer.Option(help="Resample below this quality, in [1, 5].")] = None,
    scorer: Annotated[
        str | None,
        typer.Option(help="For --min-quality, as in `lbgen score`. [default: lbgen-tiny's own for it, else qalign]"),
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Images a shard; 0 makes about 32 shards.")] = 0,
    ray_workers: Annotated[int | None, typer.Option(help="So many Ray actors (needs lbgen_hf[ray]).")] = None,
) -> None:
    """Generate a labelled dataset from class names: a folder that `datasets.load_dataset` opens.

    Killed at any moment, the same command resumes. `accelerate launch -m lbgen_hf generate ...` uses every GPU of every
    node; the same command in several jobs that share the folder shares the work too.
    """
    from lbgen_hf.synthesis.plan import preset_options

    chosen = {
        "scheduler": scheduler,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "guidance_start": guidance_start,
        "guidance_stop": guidance_stop,
        "cache_interval": cache_interval,
    }
    options = {
        **preset_options(preset),
        **{name: value for name, value in chosen.items() if value is not None},
        "images_per_class": images_per_class,
        "seed": seed,
        "format": image_format,
        "image_quality": image_quality,
        "resolution": resolution,
        "min_clip_score": min_clip_score,
        "min_quality": min_quality,
        "shard_size": shard_size,
    }
    with report_errors("lbgen", _KEPT.format(out)):
        from lbgen_hf.hub import quiet_loading
        from lbgen_hf.synthesis.folder import check_output
        from lbgen_hf.synthesis.generate import check_batch_size, generate
        from lbgen_hf.synthesis.ray_engine import generate_with_ray
        from lbgen_hf.synthesis.sample import Job

        check_output(out)
        check_batch_size(batch_size)
        quiet_loading()
        job = Job(model, lora, revision, variant, classes, device, dtype, compile_unet, scorer, options)
        with show_progress("generating") as progress:
            if ray_workers is None:
                settings = job.resolve()
                check_output(out, settings)
                generate(out, settings, job.load_sampler(settings), batch_size=batch_size, progress=progress)
            else:
                generate_with_ray(out, job, num_workers=ray_workers, batch_size=batch_size, progress=progress)
    _say_how_to_load(out)


@app.command()
def status(dataset: _Dataset) -> None:
    """Show how far a dataset is: shards done, rate, time left."""
    from lbgen_hf.synthesis.folder import DatasetFolder
    from lbgen_hf.synthesis.verify import read_status

    now = read_status(DatasetFolder(dataset))
    typer.echo(f"shards   {now.shards_done} of {now.num_shards}")
    typer.echo(f"images   {now.images_done} of {now.num_images}")
    typer.echo(f"workers  {now.workers}")
    typer.echo(f"rate     {f'{now.images_per_second:.2f} images/s' if now.images_per_second else 'not known yet'}")
    typer.echo(f"left     {f'{now.seconds_left / 3600:.2f} h' if now.seconds_left is not None else '-'}")


@app.command()
def verify(
    dataset: _Dataset,
    fix: Annotated[bool, typer.Option("--fix", help="Delete broken shards, for `generate` to make again.")] = False,
) -> None:
    """Check every row against the plan and decode every image; exit code 1 where something is wrong."""
    from lbgen_hf.synthesis import verify as verifying
    from lbgen_hf.synthesis.folder import DatasetFolder

    opened = DatasetFolder(dataset)
    with show_progress("verifying") as progress:
        problems = verifying.verify(opened, progress)
    for problem in problems:
        typer.echo(str(problem))
    if not problems:
        typer.echo(f"{dataset}: every row is as planned, every image is whole")
    elif fix:
        deleted = verifying.remove_broken(opened, problems)
        typer.echo(f"deleted {len(deleted)} broken shards; run the same lbgen generate to make them again")
        typer.echo("an image that was black is then resampled with its next seed; files outside the plan stay")
    raise typer.Exit(1 if problems else 0)


@app.command()
def publish(
    dataset: _Dataset,
    repo: Annotated[str, typer.Option(help="user/name on the Hub; made where it is absent.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repo public. [default: private]")] = False,
    license_id: Annotated[str | None, typer.Option("--license", help="For the card, as the Hub spells it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the card and list the files; upload none.")] = False,
) -> None:
    """Upload a finished dataset to the Hub. Interrupted, the same command resumes."""
    from lbgen_hf.synthesis import publish as publishing
    from lbgen_hf.synthesis.folder import DatasetFolder

    opened = DatasetFolder(dataset)
    with (
        report_errors("lbgen", "What was uploaded is kept there; run the same command to resume."),
        show_progress("checking") as progress,
    ):
        if not dry_run:
            url = publishing.publish(opened, repo, private=not public, license_id=license_id, progress=progress)
            typer.echo(f'published at {url}; load_dataset("{repo}", split="train", streaming=True) opens it')
            return
        publishing.prepare_to_publish(opened, repo, license_id, progress)
    files = publishing.files_to_publish(opened)
    for name, size in files.items():
        typer.echo(f"{size:>14,}  {name}")
    typer.echo(f"would upload {len(files)} files, {sum(files.values()):,} bytes, to {repo}")


@app.command()
def export(
    dataset: _Dataset,
    target: Annotated[Path, typer.Argument(help="The folder for the tars.")],
) -> None:
    """Write a finished dataset as WebDataset tars."""
    from lbgen_hf.synthesis.folder import DatasetFolder
    from lbgen_hf.synthesis.publish import export_webdataset

    opened = DatasetFolder(dataset)
    with (
        report_errors("lbgen", f"Finished tars are kept in {target}; run the same command to resume."),
        show_progress("exporting") as progress,
    ):
        tars = export_webdataset(opened, target, progress)
    typer.echo(f"wrote {len(tars)} tars; load_dataset('webdataset', data_files='{target}/*.tar') opens them,")
    typer.echo(f"timm as --dataset wds/ --data-dir {target} --train-split train")


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(help="A folder of images, or a dataset's with parquet shards.")],
    scorer: Annotated[str, typer.Option(help="lbgen-tiny, qalign, vlm:<repo> or pyiqa:<metric>.")] = "lbgen-tiny",
    batch_size: _BatchSize = 16,
    device: _Device = None,
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
    batch_size: _BatchSize = 64,
    num_workers: Annotated[int, typer.Option(help="Processes that read images.")] = 0,
    device: _Device = None,
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
def classes(
    source: Annotated[
        str,
        typer.Argument(help="imagenet-1k, imagenet-100, biaslab, a text file, or a dataset folder with a ClassLabel."),
    ] = "imagenet-1k",
    ambiguous: Annotated[
        bool,
        typer.Option("--ambiguous", help="Write a list for --classes instead: names of several senses made specific."),
    ] = False,
) -> None:
    """Print a class list: id, wnid (- where there is none) and name, separated by tabs."""
    from lbgen_hf.class_names import load_class_names

    if ambiguous:
        from lbgen_hf.evaluation.audit.ambiguous import check_names, write_list

        typer.echo(write_list(check_names(source)), nl=False)
        return
    class_names = load_class_names(source)
    for class_id, (name, wnid) in enumerate(zip(class_names.names, class_names.wnids, strict=True)):
        typer.echo(f"{class_id}\t{wnid or '-'}\t{name}")


@app.command()
def demo(
    model: _Model = "lbgen-tiny",
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


def _say_how_to_load(out: Path) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    typer.echo(f"{out} is complete; some of its images are in {out / 'contact_sheet.jpg'}. Load it with")
    typer.echo(
        f"  python -c \"from datasets import load_dataset; print(load_dataset({str(out)!r}, split='train')[0])\""
    )


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


if __name__ == "__main__":
    main()
