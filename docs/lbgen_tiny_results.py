"""The results of lbgen-tiny's parts in the README, and those of the same models made once more in biaslab.md.

The shipped models' were written by the script of each model, and by

python training/biaslab/measure_diffusion.py --models_dir lbgen_hf/biaslab/models
python tests/benchmarks/pipeline.py

The others' by

python training/biaslab/reproduce.py --output_dir work/models
cp work/models/results.json tests/benchmarks/results/reproduced_models.json
"""

from collections.abc import Sequence

from tables import format_proportion, format_rank_correlation, format_ratio, markdown_table, read_results

from lbgen_hf.biaslab.scenes import CLASSES

MADE = {  # what reproduce.py times, and what tables call it
    "pipeline/vae": "autoencoder",
    "clip": "CLIP",
    "pipeline/unet": "base model's UNet",
    "judge": "judge",
    "second_judge": "second judge",
    "quality": "quality scorer",
    "lora": "LoRA, paper's losses",
    "lora_context_swap": "LoRA, context-swap alignment",
    "measurement": "measurement of the base model",
}


def models_table() -> str:
    """How well the parts of lbgen-tiny do their own jobs."""
    speed = read_results("pipeline")
    speeds = [
        [
            f"`LbGenPipeline`'s speed over the plain pipeline, batch {size} (quartiles)",
            format_ratio(speed[f"batch {size}"]["lbgen"]),
            "`tests/benchmarks/pipeline.py`",
        ]
        for size in (1, 4, 16)
    ]
    return _parts_tables(read_results("biaslab_models"), speeds)


def reproduced_models_table() -> str:
    """How long each model took to be made once more, and how well it does its own job."""
    models = read_results("reproduced_models")
    minutes = [[title, f"{models['minutes'][name]:.0f}"] for name, title in MADE.items()]
    minutes.append(["all", f"{sum(models['minutes'].values()):.0f}"])
    return f"{markdown_table(['made', 'minutes on 2 cores'], minutes)}\n\n{_parts_tables(models)}"


def _parts_tables(models: dict, speeds: Sequence[Sequence[str]] = ()) -> str:
    """What was measured by attribute, and below it the rest, `speeds` last."""
    others = markdown_table(["result", "value", "script"], [*_other_parts(models), *speeds])
    return f"{_by_attribute_table(models)}\n\n{others}"


def _by_attribute_table(models: dict) -> str:
    clip, diffusion = models["clip"], models["diffusion"]
    seen = ("background", "place", "texture")
    num_images = len(CLASSES) * diffusion["images_per_class"]
    by_attribute = [
        [
            title,
            *(format_proportion(judge[name], judge["num_images"]) for name in ("shape", *seen)),
            "`training/biaslab/train_judge.py`",
        ]
        for title, judge in [
            ("judge's accuracy", models["judge"]),
            ("second judge's accuracy", models["second_judge"]),
        ]
    ]
    by_attribute += [
        [
            "the judges agree on generated images",
            *(
                format_proportion(diffusion[f"judges_agree_{name}"], num_images + diffusion["num_caption_shape"])
                for name in ("shape", *seen)
            ),
            "`training/biaslab/measure_diffusion.py`",
        ],
        [
            "CLIP's zero-shot accuracy",
            *(format_proportion(clip[name], clip[f"num_{name}"]) for name in ("class", *seen)),
            "`training/biaslab/train_clip.py`",
        ],
        [
            "images of class names show the class",
            format_proportion(diffusion["class_accuracy"], num_images),
            *[""] * len(seen),
            "`training/biaslab/measure_diffusion.py`",
        ],
        [
            "... and what the biased world ties to it",
            "",
            *(format_proportion(diffusion[f"own_{name}"], num_images) for name in seen),
            "`training/biaslab/measure_diffusion.py`",
        ],
        [
            "images of full captions show what is named",
            *(
                format_proportion(diffusion[f"caption_{name}"], diffusion[f"num_caption_{name}"])
                for name in ("shape", *seen)
            ),
            "`training/biaslab/measure_diffusion.py`",
        ],
    ]
    header = ["95 % intervals", "shape or class", *seen, "script"]
    return markdown_table(header, by_attribute)


def _other_parts(models: dict) -> list[list[str]]:
    quality = models["quality"]
    rows = [
        [
            "autoencoder: mean PSNR",
            f"{models['autoencoder']['psnr_db']:.1f} dB",
            "`training/biaslab/train_autoencoder.py`",
        ]
    ]
    for name, metric in (
        ("quality scorer: Spearman with the true level", "spearman"),
        ("... of a degradation that it never saw", "spearman_pixelation"),
    ):
        value = format_rank_correlation(quality[metric], quality["num_images"])
        rows.append([name, value, "`training/biaslab/train_quality.py`"])
    return rows


def tables() -> dict[str, str]:
    return {"models": models_table()}


def reproduced_tables() -> dict[str, str]:
    return {"reproduced_models": reproduced_models_table()}
