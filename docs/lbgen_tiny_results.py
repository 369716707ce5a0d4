"""The results of lbgen-tiny in the README and in its card, measured by

python training/biaslab/reproduce.py --output_dir work/models
cp work/models/results.json tests/benchmarks/results/biaslab_models.json
python training/measure_bias.py --lora lbgen_hf/biaslab/models/lora --num_inference_steps 25 \
    --output lbgen_hf/biaslab/models/lora/bias.json
python tests/benchmarks/pipeline.py
"""

import re

import yaml
from tables import (
    bullet,
    describe_sampling,
    format_proportion,
    format_rank_correlation,
    format_ratio,
    markdown_table,
    read_bias,
    read_results,
)

from lbgen_hf.biaslab import MODELS
from lbgen_hf.biaslab.measure import format_interval, format_percent
from lbgen_hf.biaslab.scenes import CLASSES

# What the README tells of the LoRA; the card has all metrics.
SHOWN = (
    "mi_background",
    "mi_place",
    "mi_texture",
    "own_background",
    "commonest_background",
    "class_accuracy",
    "quality",
    "distance_within_class",
)


def models_table() -> str:
    """How well the parts of lbgen-tiny do their own jobs."""
    models = read_results("biaslab_models")
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
    return f"{markdown_table(header, by_attribute)}\n\n{_other_parts_table(models)}"


def _other_parts_table(models: dict) -> str:
    quality, speed = models["quality"], read_results("pipeline")
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
    for size in (1, 4, 16):
        name = f"`LbGenPipeline`'s speed over the plain pipeline, batch {size} (quartiles)"
        rows.append([name, format_ratio(speed[f"batch {size}"]["lbgen"]), "`tests/benchmarks/pipeline.py`"])
    return markdown_table(["result", "value", "script"], rows)


def _lora_rows() -> tuple[dict[str, str], dict[str, dict]]:
    """How the shipped LoRA was measured, and its rows by metric."""
    options, measured = read_bias(MODELS / "lora" / "bias.json")
    return options, next(rows for name, rows in measured.items() if name != "base")


def lora_table(metrics: tuple[str, ...] | None = None) -> str:
    """What the shipped LoRA changes; all metrics by default."""
    options, rows = _lora_rows()
    cells = [
        [
            name.replace("_", " "),
            format_interval(rows[name]["base"]),
            format_interval(rows[name]["tuned"]),
            format_percent(rows[name]["relative"]),
        ]
        for name in metrics or rows
    ]
    return f"{describe_sampling(options)}\n\n{markdown_table(['metric', 'base', 'lbGen', 'change'], cells)}"


def _from_to(row: dict) -> str:
    return f"from {format_interval(row['base'])} to {format_interval(row['tuned'])}"


def turned_plain() -> str:
    """How much of the fall of the bias is that images turn plain."""
    _, rows = _lora_rows()
    return bullet(
        "**The bias falls partly because images turn plain.** The mutual information of class and background changes by"
        f" {format_percent(rows['mi_background']['relative'])}, but the share of the commonest background goes"
        f" {_from_to(rows['commonest_background'])}; with the LoRA it is the plain one."
    )


def accuracy_by_observer() -> str:
    """Class accuracy under the reward, from the validation of the run that made the LoRA, and under the judge."""
    options, rows = _lora_rows()
    count = len(CLASSES) * int(options["images_per_class"])
    validated = _validation_of_the_run()
    under_clip = " to ".join(format_proportion(value, validated["count"]) for value in validated["class_accuracy"])
    return bullet(
        "**The class becomes less certain, although the reward does not say so.** Under CLIP, which is the reward,"
        f" class accuracy goes from {under_clip} ({validated['count']} validation images of"
        f" `training/train_lbgen.py`). Under the independent judge it goes {_from_to(rows['class_accuracy'])}"
        f" ({count:,} images of `training/measure_bias.py`)."
    )


def _validation_of_the_run() -> dict:
    """The class accuracy of the first and the kept step in the card that the training wrote beside the LoRA."""
    folder = MODELS / "lora"
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (folder / "README.md").read_text(encoding="utf-8").splitlines()
        if re.match(r"\| (step|\d+) \|", line)
    ]
    column = table[0].index("class_accuracy")
    config = yaml.safe_load((folder / "lbgen_config.yaml").read_text(encoding="utf-8"))
    return {
        "class_accuracy": [float(row[column]) for row in table[1:]],
        "count": len(CLASSES) * config["validation_images_per_class"],
    }


def readme_tables() -> dict[str, str]:
    cautions = f"{turned_plain()}\n{accuracy_by_observer()}"
    return {"lora": lora_table(SHOWN), "cautions": cautions, "models": models_table()}


def card_tables() -> dict[str, str]:
    return {"bias": lora_table(), "plain": turned_plain()}
