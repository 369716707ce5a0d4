"""The tables of reproduction.md, measured by

OMP_NUM_THREADS=1 lbgen reproduce --out reproduction

in two processes at once. Its report.json is tests/benchmarks/results/reproduction.json, its plots are
docs/images/reproduction-*.png.
"""

from tables import read_results

from lbgen_hf.reproduction.report import tables as report_tables


def tables() -> dict[str, str]:
    """The texts of reproduction.md by the names of their marks."""
    report = read_results("reproduction")
    seconds = report["seconds"].values()
    hours = sum(seconds) / 2 / 3600
    cost = f"Two processes of one thread each made its {len(seconds)} cells in {hours:.1f} hours, on 2 CPU cores."
    return report_tables(report) | {"cost": cost}
