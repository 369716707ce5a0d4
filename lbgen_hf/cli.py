"""The command line `lbgen`: thin, one function a command. Heavy imports stay inside the commands."""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
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


@app.command()
def generate(
    out: Annotated[Path, typer.Option(help="The dataset folder; an unfinished one is completed.")],
    model: Annotated[str, typer.Option(help="lbgen-tiny, a folder, or a Hub id of a model or a LoRA.")] = "lbgen-tiny",
    lora: Annotated[str | None, typer.Option(help="A LoRA file, folder or Hub id.")] = None,
    classes: Annotated[str | None, typer.Option(help="As in `lbgen classes`. [default: the model's own]")] = None,
    images_per_class: Annotated[int, typer.Option(help="The paper's ImageNet-1k has 1300.")] = 8,
    seed: Annotated[int, typer.Option(help="Base seed.")] = 0,
    preset: Annotated[str, typer.Option(help="paper or fast; the options below overrule it.")] = "paper",
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance.")] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None, typer.Option(help="Noise levels in [0, 1], low and high, where guidance acts.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="pndm, dpmpp-2m, ddim, unipc, euler, or a diffusers class.")
    ] = None,
    cache_interval: Annotated[
        int | None, typer.Option(help="Run the UNet's deep half at every n-th step only.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures at a time; changes no picture.")] = 16,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. [default: the fastest]")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16. [default: float16 on CUDA, else float32]")
    ] = None,
    compile_unet: Annotated[bool, typer.Option("--compile", help="Compile the UNet.")] = False,
    image_format: Annotated[str, typer.Option("--format", help="jpeg, webp or png.")] = "jpeg",
    quality: Annotated[int, typer.Option(help="Of jpeg and webp.")] = 95,
    resolution: Annotated[int | None, typer.Option(help="Resize to this edge before storing.")] = None,
    min_clip_score: Annotated[float | None, typer.Option(help="Draw again below this CLIP score.")] = None,
    min_quality: Annotated[float | None, typer.Option(help="Draw again below this quality, in [1, 5].")] = None,
    shard_size: Annotated[int, typer.Option(help="Pictures a shard; 0 makes about 32 shards.")] = 0,
    ray_workers: Annotated[int | None, typer.Option(help="Draw with so many Ray actors (needs lbgen_hf[ray]).")] = None,
) -> None:
    """Draw a labelled dataset from class names: a folder that `datasets.load_dataset` opens.

    Killed at any moment, the same command goes on. `accelerate launch -m lbgen_hf generate ...` uses every GPU of every
    node; jobs of their own that share the folder share the work too.
    """
    from lbgen_hf.synthesis.settings import preset_options

    chosen = {
        "steps": steps,
        "guidance_scale": guidance_scale,
        "guidance_interval": guidance_interval,
        "scheduler": scheduler,
        "cache_interval": cache_interval,
    }
    options = {
        **preset_options(preset),
        **{name: value for name, value in chosen.items() if value is not None},
        "images_per_class": images_per_class,
        "seed": seed,
        "format": image_format,
        "quality": quality,
        "resolution": resolution,
        "min_clip_score": min_clip_score,
        "min_quality": min_quality,
        "shard_size": shard_size,
    }
    with report_errors("lbgen", f"Finished shards are kept in {out}; run the same command to go on."):
        from lbgen_hf.synthesis.generate import generate as generate_dataset
        from lbgen_hf.synthesis.job import Job
        from lbgen_hf.synthesis.ray_engine import generate_with_ray
        from lbgen_hf.synthesis.settings import check_stranger

        check_stranger(out)
        _silence_loading()
        job = Job(model, lora, classes, device, dtype, compile_unet, options)
        with _image_bar() as progress:
            if ray_workers is None:
                generate_dataset(out, *job.prepare(), batch_size=batch_size, progress=progress)
            else:
                generate_with_ray(out, job, num_workers=ray_workers, batch_size=batch_size, progress=progress)
    _say_how_to_load(out)


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="The dataset folder.")] = Path("lbgen-quickstart"),
    seed: Annotated[int, typer.Option(help="Base seed.")] = 0,
) -> None:
    """Draw a small labelled dataset with the shipped model, and show how biased it is beside the base model's."""
    with report_errors("lbgen", f"Finished shards are kept in {out}; run the same command to go on."):
        from lbgen_hf.synthesis.quickstart import run_quickstart

        _silence_loading()
        with _image_bar() as progress:
            drawn = run_quickstart(out, seed, progress)
    if drawn.base:
        from lbgen_hf.biaslab.measure import format_comparison

        typer.echo(f"lbGen's pictures are in {out}, the base model's, from the same noise, in {drawn.base}.")
        typer.echo("What an independent judge sees in them (mutual information of class and context, in nats):\n")
        typer.echo(f"{format_comparison(drawn.figures)}\n")
    _say_how_to_load(out)


_Dataset = Annotated[Path, typer.Argument(help="A folder that `lbgen generate` made.")]


@app.command()
def status(dataset: _Dataset) -> None:
    """Show how far a dataset is: shards done, rate, time left."""
    from lbgen_hf.synthesis.verify import read_status

    now = read_status(dataset)
    typer.echo(f"shards   {now.shards_done} of {now.num_shards}")
    typer.echo(f"images   {now.images_done} of {now.num_images}")
    typer.echo(f"workers  {now.workers}")
    typer.echo(f"rate     {f'{now.images_per_second:.2f} images/s' if now.images_per_second else 'not known yet'}")
    typer.echo(f"left     {f'{now.seconds_left / 3600:.2f} h' if now.seconds_left is not None else '-'}")


@app.command()
def verify(
    dataset: _Dataset,
    fix: Annotated[bool, typer.Option("--fix", help="Delete broken shards, for `generate` to draw again.")] = False,
) -> None:
    """Check every row against the plan and decode every picture; exit code 1 where something is wrong."""
    from lbgen_hf.synthesis.verify import remove_broken
    from lbgen_hf.synthesis.verify import verify as find_problems

    problems = find_problems(dataset)
    for problem in problems:
        typer.echo(str(problem))
    if fix:
        remove_broken(dataset, problems)
    if not problems:
        typer.echo(f"{dataset}: every row is as planned, every picture is whole")
    elif fix:
        typer.echo("deleted the broken shards; run the same lbgen generate to draw them again")
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

    if dry_run:
        publishing.prepare_to_publish(dataset, repo, license_id)
        files = publishing.files_to_publish(dataset)
        for name, size in files.items():
            typer.echo(f"{size:>14,}  {name}")
        typer.echo(f"would upload {len(files)} files, {sum(files.values()):,} bytes, to {repo}")
        return
    with report_errors("lbgen", "What was uploaded is kept there; run the same command to resume."):
        url = publishing.publish(dataset, repo, private=not public, license_id=license_id)
    typer.echo(f'published at {url}; load_dataset("{repo}", split="train", streaming=True) opens it')


@app.command()
def export(
    dataset: _Dataset,
    target: Annotated[Path, typer.Argument(help="The folder for the tars.")],
) -> None:
    """Write a finished dataset as WebDataset tars."""
    from lbgen_hf.synthesis.webdataset import export_webdataset

    tars = export_webdataset(dataset, target)
    typer.echo(f"wrote {len(tars)} tars; load_dataset('webdataset', data_files='{target}/*.tar') opens them")


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="lbgen-tiny, a folder, or a Hub id of a model or a LoRA.")] = "lbgen-tiny",
    lora: Annotated[str | None, typer.Option(help="A LoRA to compare with it. [default: lbgen-tiny's own]")] = None,
    quality: Annotated[
        str | None, typer.Option(help="A quality scorer, as in `lbgen score`. [default: lbgen-tiny's own, else none]")
    ] = None,
    dataset: Annotated[list[Path] | None, typer.Option(help="A generated dataset to look at; may be repeated.")] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="[default: the first free one from 7860]")] = None,
) -> None:
    """Open a page that draws classes with the base model and with lbGen, and shows datasets and measured bias."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the demo needs gradio: pip install 'lbgen_hf[demo]'")
    _silence_loading()
    sys.path.insert(0, str(_program_folder("demo")))
    from app import launch

    launch(model, lora, quality, dataset or [], server_name=host, server_port=port)


def _program_folder(name: str) -> Path:
    """A folder of programs: in the wheel it lies inside the package, in a checkout beside it."""
    package = Path(lbgen_hf.__file__).parent
    packed = package / f"_{name}"
    return packed if packed.is_dir() else package.parent / name


def _silence_loading() -> None:
    """One progress bar is enough: ours."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures, or a dataset's with parquet shards.")],
    quality: Annotated[
        str, typer.Option(help="The scorer: lbgen-tiny, qalign, vlm:<repo> or pyiqa:<metric>.")
    ] = "lbgen-tiny",
    batch_size: Annotated[int, typer.Option(help="Pictures at a time.")] = 16,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. [default: the fastest]")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, float16 or bfloat16. [default: bfloat16 for qalign, vlm on a GPU]"),
    ] = None,
    bits: Annotated[int | None, typer.Option(help="8 or 4: quantise qalign or vlm with bitsandbytes.")] = None,
) -> None:
    """Score the quality of pictures in [1, 5]: a new column `quality` in a dataset's shards, or in metadata.csv."""
    with report_errors("lbgen", "What was scored is kept; run the same command to go on."):
        from lbgen_hf.devices import DTYPES, pick_device
        from lbgen_hf.rewards import quality as scorers
        from lbgen_hf.rewards.quality.scoring import score_folder

        if dtype is not None and dtype not in DTYPES:
            raise UserError(f"unknown dtype {dtype!r}; choose from {', '.join(DTYPES)}")
        options = {"device": pick_device(device), "dtype": DTYPES[dtype] if dtype else None, "bits": bits}
        with _image_bar("scoring") as progress:
            scored = score_folder(
                folder,
                quality,
                lambda name: scorers.load_quality_scorer(name, **options),
                batch_size=batch_size,
                progress=progress,
            )
    mean = sum(scored.scores) / len(scored.scores)
    typer.echo(
        f"{len(scored.scores)} pictures, {scored.known} of them scored before: "
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
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 64,
    num_workers: Annotated[int, typer.Option(help="Processes that read images.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. [default: the fastest]")] = None,
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

        _silence_loading()
        with _image_bar("measuring") as progress:
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


@contextlib.contextmanager
def _image_bar(what: str = "drawing") -> Iterator[Callable[[int, int], None]]:
    """A progress bar with images/s and time left, told how many pictures of how many; one rank alone shows it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task) -> Text:
            return Text(f"{task.speed:.2f} images/s" if task.speed else "- images/s")

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn()]
    console = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")
    bar = Progress(*columns, console=console, speed_estimate_period=300)
    task = bar.add_task(what, total=None)

    def show(done: int, total: int) -> None:
        bar.start()  # not before there is something to show: an error stays one line
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


def _say_how_to_load(out: Path) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    typer.echo(f"{out} is complete; some of its pictures are in {out / 'contact_sheet.jpg'}. Load it with")
    typer.echo(
        f"  python -c \"from datasets import load_dataset; print(load_dataset({str(out)!r}, split='train')[0])\""
    )


if __name__ == "__main__":
    main()
