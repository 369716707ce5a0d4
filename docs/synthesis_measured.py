"""Write what tests/benchmarks/synthesis.py measured into synthesis.md.

python tests/benchmarks/synthesis.py
python tests/benchmarks/synthesis.py --quality
python docs/synthesis_measured.py
"""

import json
import re
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "tests" / "benchmarks" / "results"
FIGURES = ("class_accuracy", "quality", "distance_within_class")


def speed_table(results: dict) -> str:
    lines = ["| way | ratio of images/s (quartiles) | counted GFLOP an image |", "|---|---|---|"]
    for name, way in results["ways"].items():
        low, high = way["ratio_spread"]
        lines.append(f"| {name} | {way['ratio']:.2f}x ({low:.2f}-{high:.2f}) | {way['gflop_an_image']:.1f} |")
    return "\n".join(lines)


def quality_table(results: dict) -> str:
    lines = ["| preset | " + " | ".join(name.replace("_", " ") for name in FIGURES) + " | feature distance |"]
    lines.append("|---" * (2 + len(FIGURES)) + "|")
    for name, measured in results["variants"].items():
        changes = [measured["figures"][figure]["change"] for figure in FIGURES]
        cells = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*change) for change in changes]
        lines.append(f"| {name} | {' | '.join(cells)} | {measured['feature_distance']:.3f} |")
    return "\n".join(lines)


TABLES = {
    "speed": ("synthesis.json", speed_table),
    "quality": ("synthesis_quality.json", quality_table),
}


def main() -> None:
    path = Path(__file__).with_name("synthesis.md")
    page = path.read_text()
    for mark, (name, table_of) in TABLES.items():
        table = table_of(json.loads((RESULTS / name).read_text()))
        page = re.sub(rf"(?s)(<!-- {mark} -->).*?(<!-- /{mark} -->)", lambda m, t=table: f"{m[1]}\n{t}\n{m[2]}", page)
    path.write_text(page)


if __name__ == "__main__":
    main()
