"""The tables of biaslab.md, measured by

the commands of context_swap_results.py, and
python training/measure_curve.py paper-0 --output tests/benchmarks/results/lora_curve.json
"""

from tables import RESULTS, describe_sampling, markdown_table, read_bias

from lbgen_hf.biaslab.measure import format_interval, format_percent

CURVE = ("mi_background", "mi_texture", "mi_place", "class_accuracy", "quality", "distance_within_class")


def seeds_table() -> str:
    """One column a seed of the fine-tuning with the paper's losses: its change against the base model."""
    options, measured = read_bias(RESULTS / "alignments.json")
    base = measured["base"]
    runs = {name.removeprefix("paper-"): table for name, table in measured.items() if name.startswith("paper-")}
    rows = [
        [
            name.replace("_", " "),
            format_interval(row["base"]),
            *(format_percent(table[name]["relative"]) for table in runs.values()),
        ]
        for name, row in base.items()
    ]
    header = ["metric", "base", *(f"seed {seed}" for seed in runs)]
    return f"{describe_sampling(options)}\n\n{markdown_table(header, rows)}"


def curve_table() -> str:
    """One row for every step whose validation images were judged."""
    options, measured = read_bias(RESULTS / "lora_curve.json")
    rows = [
        [str(int(name.removeprefix("step-"))), *(format_interval(table[metric]["tuned"]) for metric in CURVE)]
        for name, table in measured.items()
    ]
    how = (
        f"{options['images_per_class']} validation images of each class, the same noise at every step; 95 % intervals."
    )
    return f"{how}\n\n{markdown_table(['step', *CURVE], rows)}"


def tables() -> dict[str, str]:
    return {"seeds": seeds_table(), "curve": curve_table()}
