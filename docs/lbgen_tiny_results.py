"""The results of lbgen-tiny's parts in the README, measured by

python training/biaslab/reproduce.py --output_dir work/models
python training/biaslab/measure_diffusion.py --models_dir work/models --images_per_class 50 --num_captions 400
cp work/models/results.json tests/benchmarks/results/biaslab_models.json
python tests/benchmarks/pipeline.py
"""

from tables import format_proportion, format_rank_correlation, format_ratio, markdown_table, read_results

from lbgen_hf.biaslab.scenes import CLASSES


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


def tables() -> dict[str, str]:
    return {"models": models_table()}
