"""The tables of synthesis.md, measured by

python tests/benchmarks/synthesis.py --images_per_class 2 --repeats 3
python tests/benchmarks/synthesis.py --quality
python tests/benchmarks/synthesis.py --sd15
python tests/benchmarks/synthesis.py --deepcache
"""

from tables import format_ratio, markdown_table, read_results

METRICS = ("class_accuracy", "quality", "distance_within_class", "mi_background")


def speed_table() -> str:
    ways = read_results("synthesis")["ways"]
    rows = [[name, format_ratio(way), f"{way['gflop_an_image']:.1f}"] for name, way in ways.items()]
    return markdown_table(["way", "ratio of images/s (quartiles)", "counted GFLOP an image"], rows)


def quality_table() -> str:
    variants = read_results("synthesis_quality")["variants"]
    rows = []
    for name, measured in variants.items():
        changes = [measured["metrics"][metric]["change"] for metric in METRICS]
        cells = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*change) for change in changes]
        rows.append([name, *cells, f"{measured['feature_distance']:.3f}"])
    return markdown_table(["preset", *METRICS, "feature distance"], rows)


def full_size_table() -> str:
    """One step at full size, lever by lever."""
    measured = read_results("synthesis_sd15")
    rows = [[name, f"{way['seconds']:.1f}", format_ratio(way)] for name, way in measured["ways"].items()]
    return f"{measured['settings']}\n\n{markdown_table(['step', 'seconds', 'ratio (quartiles)'], rows)}"


def deepcache_table() -> str:
    """Our feature cache beside the package of its authors."""
    measured = read_results("deepcache")
    rows = [
        [name, format_ratio(way), f"{way['gflop_an_image']:.1f}", f"{way['difference']:.4f}"]
        for name, way in measured["ways"].items()
    ]
    header = ["cache", "ratio of images/s (quartiles)", "counted GFLOP an image", "difference to no cache"]
    late = f"Where guidance starts at a step that is skipped, DeepCache {measured['guided_from_step_1']}"
    how = f"{measured['steps']} steps, {measured['batch']} images at a time."
    return f"{how}\n\n{markdown_table(header, rows)}\n\n{late}"


def tables() -> dict[str, str]:
    return {
        "speed": speed_table(),
        "quality": quality_table(),
        "full_size": full_size_table(),
        "deepcache": deepcache_table(),
    }
