"""Write the tables of biaslab.md out of what was measured.

python training/measure_bias.py --lora seed-0 seed-1 seed-2 --num_inference_steps 25 \
    --output training/biaslab/lora_seeds.json
python training/measure_curve.py seed-1 --output training/biaslab/lora_curve.json
python tests/benchmarks/training_levers.py
python docs/biaslab_figures.py
"""

import json
import re
from pathlib import Path

PAGE = Path(__file__).with_name("biaslab.md")
MEASURED = Path(__file__).parents[1] / "training" / "biaslab"
LEVERS = Path(__file__).parents[1] / "tests" / "benchmarks" / "results" / "training_levers.json"
CURVE = ("mi_background", "mi_texture", "mi_place", "class_accuracy", "quality", "distance_within_class")


def read(name: str) -> tuple[dict[str, str], dict[str, dict[str, dict]]]:
    """The options of a measurement, and per LoRA its rows by the figure's name."""
    measured = json.loads((MEASURED / name).read_text())
    tables = {lora: {row["name"]: row for row in rows} for lora, rows in measured["tables"].items()}
    return measured["options"], tables


def percent(values: tuple[float, float, float]) -> str:
    return "{:+.0f} % [{:+.0f}, {:+.0f}]".format(*(100 * value for value in values))


def number(values: tuple[float, float, float]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*values)


def drawn(options: dict[str, str]) -> str:
    return (
        f"{options['images_per_class']} pictures of each class, {options['num_inference_steps']} steps,"
        f" guidance {options['guidance_scale']}, the same noise for all; 95 % intervals."
    )


def seeds_table() -> str:
    """One column a seed of the fine-tuning: change against the base model."""
    options, tables = read("lora_seeds.json")
    base = tables.pop("base")
    lines = ["| figure | base | " + " | ".join(f"seed {i}" for i in range(len(tables))) + " |"]
    lines.append("|---" * (2 + len(tables)) + "|")
    for name, row in base.items():
        cells = [name.replace("_", " "), number(row["base"]), *(percent(t[name]["relative"]) for t in tables.values())]
        lines.append(f"| {' | '.join(cells)} |")
    return f"{drawn(options)}\n\n" + "\n".join(lines)


def curve_table() -> str:
    """One row for every step whose held-out pictures were judged."""
    options, tables = read("lora_curve.json")
    lines = ["| step | " + " | ".join(name.replace("_", " ") for name in CURVE) + " |", "|---" * (1 + len(CURVE)) + "|"]
    for name, table in tables.items():
        step = int(name.removeprefix("step-"))
        lines.append(f"| {step} | " + " | ".join(number(table[figure]["tuned"]) for figure in CURVE) + " |")
    how = (
        f"{options['images_per_class']} held-out pictures of each class, the same noise at every step; 95 % intervals."
    )
    return f"{how}\n\n" + "\n".join(lines)


def levers_table() -> str:
    """One row a variant: steps in equal time, and what they changed."""
    measured = json.loads(LEVERS.read_text())
    shown = ("mi_background", "mi_place", "class_accuracy", "quality", "distance_within_class")
    lines = ["| training | s a step | steps | " + " | ".join(name.replace("_", " ") for name in shown) + " |"]
    lines.append("|---" * (3 + len(shown)) + "|")
    for name, variant in measured["variants"].items():
        cells = [name, f"{variant['seconds_a_step']:.2f}", str(variant["steps"])]
        cells += [percent(variant["relative"][figure]) for figure in shown]
        lines.append(f"| {' | '.join(cells)} |")
    settings = measured["settings"]
    how = (
        f"{settings['minutes']} minutes of training each; {settings['images_per_class']} pictures of each class,"
        f" {settings['num_inference_steps']} steps; changes against the base model, 95 % intervals."
    )
    return f"{how}\n\n" + "\n".join(lines)


def main() -> None:
    page = PAGE.read_text()
    for mark, table in (("seeds", seeds_table()), ("curve", curve_table()), ("levers", levers_table())):
        page = re.sub(rf"(?s)(<!-- {mark} -->).*?(<!-- /{mark} -->)", lambda m, t=table: f"{m[1]}\n{t}\n{m[2]}", page)
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
