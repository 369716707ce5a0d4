"""Write the tables of biaslab.md out of what was measured.

python training/measure_bias.py --lora seed-0 seed-1 seed-2 --num_inference_steps 25 \
    --output training/biaslab/lora_seeds.json
python training/measure_curve.py seed-1 --output training/biaslab/lora_curve.json
python tests/benchmarks/training_levers.py
python docs/biaslab_figures.py
"""

import json
from pathlib import Path

from tables import fill_in, markdown_table, read_benchmark

from lbgen_hf.biaslab.measure import format_interval, format_percent

PAGE = Path(__file__).with_name("biaslab.md")
MEASURED = Path(__file__).parents[1] / "training" / "biaslab"
CURVE = ("mi_background", "mi_texture", "mi_place", "class_accuracy", "quality", "distance_within_class")


def read(name: str) -> tuple[dict[str, str], dict[str, dict[str, dict]]]:
    """The options of a measurement, and per LoRA its rows by the figure's name."""
    measured = json.loads((MEASURED / name).read_text())
    tables = {lora: {row["name"]: row for row in rows} for lora, rows in measured["tables"].items()}
    return measured["options"], tables


def drawn(options: dict[str, str]) -> str:
    return (
        f"{options['images_per_class']} pictures of each class, {options['num_inference_steps']} steps,"
        f" guidance {options['guidance_scale']}, the same noise for all; 95 % intervals."
    )


def seeds_table() -> str:
    """One column a seed of the fine-tuning: change against the base model."""
    options, tables = read("lora_seeds.json")
    base = tables.pop("base")
    rows = [
        [
            name.replace("_", " "),
            format_interval(row["base"]),
            *(format_percent(table[name]["relative"]) for table in tables.values()),
        ]
        for name, row in base.items()
    ]
    header = ["figure", "base", *(f"seed {i}" for i in range(len(tables)))]
    return f"{drawn(options)}\n\n{markdown_table(header, rows)}"


def curve_table() -> str:
    """One row for every step whose held-out pictures were judged."""
    options, tables = read("lora_curve.json")
    rows = [
        [str(int(name.removeprefix("step-"))), *(format_interval(table[figure]["tuned"]) for figure in CURVE)]
        for name, table in tables.items()
    ]
    how = (
        f"{options['images_per_class']} held-out pictures of each class, the same noise at every step; 95 % intervals."
    )
    return f"{how}\n\n{markdown_table(['step', *CURVE], rows)}"


def levers_table() -> str:
    """One row a variant: steps in equal time, and what they changed."""
    measured = read_benchmark("training_levers")
    shown = ("mi_background", "mi_place", "class_accuracy", "quality", "distance_within_class")
    rows = [
        [
            name,
            f"{variant['seconds_a_step']:.2f}",
            str(variant["steps"]),
            *(format_percent(variant["relative"][figure]) for figure in shown),
        ]
        for name, variant in measured["variants"].items()
    ]
    settings = measured["settings"]
    how = (
        f"{settings['minutes']} minutes of training each; {settings['images_per_class']} pictures of each class,"
        f" {settings['num_inference_steps']} steps; changes against the base model, 95 % intervals."
    )
    return f"{how}\n\n{markdown_table(['training', 's a step', 'steps', *shown], rows)}"


if __name__ == "__main__":
    fill_in(PAGE, {"seeds": seeds_table(), "curve": curve_table(), "levers": levers_table()})
