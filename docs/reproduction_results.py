"""The tables of reproduction.md, measured by

OMP_NUM_THREADS=1 lbgen reproduce --out reproduction
OMP_NUM_THREADS=1 lbgen reproduce --from-scratch --out reproduction
OMP_NUM_THREADS=1 lbgen reproduce --from-scratch --out reproduction \
    --lora no_entire_best=reproduction/adapters/no_entire/best    # and so on for each that ends in _best

each in two processes at once. The report.json is tests/benchmarks/results/reproduction.json, its plots are
docs/images/reproduction-*.png.
"""

from tables import read_results

from lbgen_hf.reproduction.report import tables as report_tables


def tables() -> dict[str, str]:
    """The texts of reproduction.md by the names of their marks."""
    report = read_results("reproduction")
    seconds = report["seconds"].values()
    cost = (
        f"Two processes of one thread each made these {len(seconds)} cells in {sum(seconds) / 2 / 3600:.1f} hours, on "
        "2 CPU cores with other work on them at times, the fine-tuning of their adapters included."
    )
    return report_tables(report) | {"cost": cost}
