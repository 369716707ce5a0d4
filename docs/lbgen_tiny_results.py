"""The results of lbgen-tiny in the README and in its card, measured by

python training/biaslab/reproduce.py --output_dir work/models
python training/measure_bias.py --lora lbgen_hf/biaslab/models/lora --num_inference_steps 25 \
    --output lbgen_hf/biaslab/models/lora/bias.json
python tests/benchmarks/pipeline.py
"""

from tables import describe_sampling, format_ratio, markdown_table, read_bias, read_results

from lbgen_hf.biaslab import MODELS
from lbgen_hf.biaslab.measure import format_interval, format_percent

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


def _join(measured: dict[str, float], *names: str) -> str:
    return ", ".join(f"{measured[name]:.3f}" for name in names)


def models_table() -> str:
    """How well the parts of lbgen-tiny do their own jobs."""
    models, speed = read_results("biaslab_models"), read_results("pipeline")
    seen = ("background", "place", "texture")
    judge, clip, diffusion, quality = (models[name] for name in ("judge", "clip", "diffusion", "quality"))
    psnr = models["autoencoder"]["psnr_db"]
    captioned = ("caption_background", "caption_place", "caption_shape", "caption_texture")
    in_training = [
        ("judge's accuracy: shape, background, place, texture", _join(judge, "shape", *seen), "train_judge"),
        ("CLIP zero-shot: class, background, place, texture", _join(clip, "class", *seen), "train_clip"),
        ("autoencoder, PSNR", f"{psnr:.1f} dB", "train_autoencoder"),
        (
            "quality scorer, Spearman with the true level; a degradation never seen",
            _join(quality, "spearman", "spearman_pixelation"),
            "train_quality",
        ),
        (
            f"an image shows the class asked for ({diffusion['images_per_class']} images of each class)",
            _join(diffusion, "class_accuracy"),
            "measure_diffusion",
        ),
        (
            "... what a full caption names: background, place, shape, texture",
            _join(diffusion, *captioned),
            "measure_diffusion",
        ),
    ]
    rows = [[result, value, f"`training/biaslab/{script}.py`"] for result, value, script in in_training]
    ratios = ", ".join(format_ratio(speed[f"batch {size}"]["lbgen"]) for size in (1, 4, 16))
    rows.append(
        ["speed of `LbGenPipeline` over the plain pipeline, batch 1, 4, 16", ratios, "`tests/benchmarks/pipeline.py`"]
    )
    return markdown_table(["result", "value", "script"], rows)


def lora_table(metrics: tuple[str, ...] | None = None) -> str:
    """What the shipped LoRA changes; all metrics by default."""
    options, measured = read_bias(MODELS / "lora" / "bias.json")
    rows = next(rows for name, rows in measured.items() if name != "base")
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


def readme_tables() -> dict[str, str]:
    return {"lora": lora_table(SHOWN), "models": models_table()}


def card_tables() -> dict[str, str]:
    return {"bias": lora_table()}
