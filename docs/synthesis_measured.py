"""Write what tests/benchmarks/synthesis.py measured into synthesis.md.

python tests/benchmarks/synthesis.py
python tests/benchmarks/synthesis.py --quality
python tests/benchmarks/synthesis.py --sd15
python docs/synthesis_measured.py
"""

import json
from pathlib import Path

from tables import fill_in, markdown_table

PAGE = Path(__file__).with_name("synthesis.md")
RESULTS = Path(__file__).parents[1] / "tests" / "benchmarks" / "results"
FIGURES = ("class_accuracy", "quality", "distance_within_class")


def speed_table() -> str:
    ways = json.loads((RESULTS / "synthesis.json").read_text())["ways"]
    rows = []
    for name, way in ways.items():
        low, high = way["ratio_spread"]
        rows.append([name, f"{way['ratio']:.2f}x ({low:.2f}-{high:.2f})", f"{way['gflop_an_image']:.1f}"])
    return markdown_table(["way", "ratio of images/s (quartiles)", "counted GFLOP an image"], rows)


def quality_table() -> str:
    variants = json.loads((RESULTS / "synthesis_quality.json").read_text())["variants"]
    rows = []
    for name, measured in variants.items():
        changes = [measured["figures"][figure]["change"] for figure in FIGURES]
        cells = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*change) for change in changes]
        rows.append([name, *cells, f"{measured['feature_distance']:.3f}"])
    return markdown_table(["preset", *FIGURES, "feature distance"], rows)


def full_size_table() -> str:
    """One step at full size, lever by lever."""
    measured = json.loads((RESULTS / "synthesis_sd15.json").read_text())
    rows = []
    for name, way in measured["ways"].items():
        low, high = way["ratio_spread"]
        rows.append([name, f"{way['seconds']:.1f}", f"{way['ratio']:.2f}x ({low:.2f}-{high:.2f})"])
    return f"{measured['settings']}\n\n{markdown_table(['step', 'seconds', 'ratio (quartiles)'], rows)}"


if __name__ == "__main__":
    fill_in(PAGE, {"speed": speed_table(), "quality": quality_table(), "full_size": full_size_table()})
