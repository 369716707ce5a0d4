"""The tables of biaslab.md and context_swap.md over the steps of a training, measured after the commands of
context_swap_results.py by

python training/measure_curve.py paper-0 --output tests/benchmarks/results/lora_curve.json
python training/measure_curve.py context-swap-0 --output tests/benchmarks/results/context_swap_curve.json
"""

from tables import RESULTS, markdown_table, read_bias

from lbgen_hf.biaslab.measure import format_interval

CURVE = ("mi_background", "mi_texture", "mi_place", "class_accuracy", "quality", "distance_within_class")


def curve_table(name: str) -> str:
    """One row for every step whose validation images were judged."""
    options, measured = read_bias(RESULTS / f"{name}.json")
    rows = [
        [str(int(name.removeprefix("step-"))), *(format_interval(table[metric]["tuned"]) for metric in CURVE)]
        for name, table in measured.items()
    ]
    how = (
        f"{options['images_per_class']} validation images of each class, the same noise at every step; 95 % intervals."
    )
    return f"{how}\n\n{markdown_table(['step', *CURVE], rows)}"


def tables() -> dict[str, str]:
    return {"curve": curve_table("lora_curve")}
