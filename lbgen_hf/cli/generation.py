"""The commands that make a dataset and look after it."""

import os
from pathlib import Path
from typing import Annotated

import typer

from lbgen_hf.cli.program import BatchSize, Dataset, Device, Model, app
from lbgen_hf.errors import report_errors
from lbgen_hf.progress import show_progress

_KEPT = "Finished shards are kept in {}; run the same command to resume."


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
    if len(made.results) > 1:
        from lbgen_hf.biaslab.measure import format_side_by_side
        from lbgen_hf.quickstart import METRICS

        typer.echo("Generated from the same noise:\n")
        typer.echo("".join(f"- {name}: {folder}\n" for name, folder in made.folders.items()))
        typer.echo(
            "What an independent judge sees (mutual information of class and context, `mi`, and entropies in nats;"
            " `marked`: among images that are not plain):\n"
        )
        typer.echo(f"{format_side_by_side(made.results, METRICS)}\n")
    _say_how_to_load(out)


@app.command()
def generate(
    out: Annotated[Path, typer.Option(help="The dataset folder; an unfinished one is completed.")],
    model: Model = "lbgen-tiny",
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
        int | None, typer.Option(help="Run all but the UNet's last layer at every n-th step only.")
    ] = None,
    batch_size: BatchSize = 16,
    device: Device = None,
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
        from lbgen_hf.synthesis.create import check_output
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


def _say_how_to_load(out: Path) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    typer.echo(f"{out} is complete; some of its images are in {out / 'contact_sheet.jpg'}. Load it with")
    typer.echo(
        f"  python -c \"from datasets import load_dataset; print(load_dataset({str(out)!r}, split='train')[0])\""
    )


@app.command()
def status(dataset: Dataset) -> None:
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
    dataset: Dataset,
    fix: Annotated[bool, typer.Option("--fix", help="Delete broken shards, for `generate` to make again.")] = False,
) -> None:
    """Check every row against the plan and decode every image; exit code 1 where something is wrong."""
    from lbgen_hf.synthesis import verify as verifying
    from lbgen_hf.synthesis.folder import DatasetFolder

    opened = DatasetFolder(dataset)
    with show_progress("verifying") as progress:
        problems, deleted = verifying.fix(opened, progress) if fix else (verifying.verify(opened, progress), [])
    for problem in problems:
        typer.echo(str(problem))
    if not problems:
        typer.echo(f"{dataset}: every row is as planned, every image is whole")
    elif fix:
        typer.echo(f"deleted {len(deleted)} broken shards; run the same lbgen generate to make them again")
        typer.echo("an image that was black is then resampled with its next seed; files outside the plan stay")
    raise typer.Exit(1 if problems else 0)


@app.command()
def publish(
    dataset: Dataset,
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
    dataset: Dataset,
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
