"""Write what tests/benchmarks/synthesis.py measured into synthesis.md.

python tests/benchmarks/synthesis.py
python tests/benchmarks/synthesis.py --quality
python tests/benchmarks/synthesis.py --sd15
python docs/synthesis_measured.py
"""

from pathlib import Path

from tables import fill_in, format_ratio, markdown_table, read_benchmark

PAGE = Path(__file__).with_name("synthesis.md")
FIGURES = ("class_accuracy", "quality", "distance_within_class")


def speed_table() -> str:
    ways = read_benchmark("synthesis")["ways"]
    rows = [[name, format_ratio(way), f"{way['gflop_an_image']:.1f}"] for name, way in ways.items()]
    return markdown_table(["way", "ratio of images/s (quartiles)", "counted GFLOP an image"], rows)


def quality_table() -> str:
    variants = read_benchmark("synthesis_quality")["variants"]
    rows = []
    for name, measured in variants.items():
        changes = [measured["figures"][figure]["change"] for figure in FIGURES]
        cells = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*change) for change in changes]
        rows.append([name, *cells, f"{measured['feature_distance']:.3f}"])
    return markdown_table(["preset", *FIGURES, "feature distance"], rows)


def full_size_table() -> str:
    """One step at full size, lever by lever."""
    measured = read_benchmark("synthesis_sd15")
    rows = [[name, f"{way['seconds']:.1f}", format_ratio(way)] for name, way in measured["ways"].items()]
    return f"{measured['settings']}\n\n{markdown_table(['step', 'seconds', 'ratio (quartiles)'], rows)}"


if __name__ == "__main__":
    fill_in(PAGE, {"speed": speed_table(), "quality": quality_table(), "full_size": full_size_table()})
