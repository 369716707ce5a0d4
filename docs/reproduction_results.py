"""The tables of reproduction.md, measured by

lbgen reproduce --out reproduction

Its report.json is tests/benchmarks/results/reproduction.json, its plots are docs/images/reproduction-*.png.
"""

from tables import read_results

from lbgen_hf.reproduction.report import tables as report_tables


def tables() -> dict[str, str]:
    """The texts of reproduction.md by the names of their marks."""
    return report_tables(read_results("reproduction"))
