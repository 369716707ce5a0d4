"""The tables and curves of reproduction.md, measured by

OMP_NUM_THREADS=1 lbgen reproduce --out reproduction
OMP_NUM_THREADS=1 lbgen reproduce --from-scratch --out reproduction
OMP_NUM_THREADS=1 lbgen reproduce --from-scratch --out reproduction \
    --lora no_entire_best=reproduction/adapters/no_entire/best    # and so on for each that ends in _best

each in two processes at once; tests/benchmarks/results/reproduction.json is its report.json. The rest was made on two
other machines, each with the images of the base model and of lbGen once more, whose backbones are the first machine's:
what else has no backbones, and further runs of lbGen's recipe (reproduction_images.json), and captions that name 40, 80
and 100 % (reproduction_captions.json). The seconds of an adapter that was fine-tuned on from a shorter run's checkpoint
include that run's.

    python docs/reproduction_results.py

plots the curves, docs/images/reproduction-*.png. The JPEGs there are the first machine's same_noise.jpg and
polysemy.jpg, without the arms that end in _best, and as more_arms.jpg and captions.jpg the other machines'
same_noise.jpg.
"""

import functools
import math
from pathlib import Path
from typing import Any

from tables import read_results

from lbgen_hf.reproduction.adapters import RUNS
from lbgen_hf.reproduction.arms import standard_arms
from lbgen_hf.reproduction.orders import expected_orders
from lbgen_hf.reproduction.plots import save_doses, save_few_shot, save_frontier
from lbgen_hf.reproduction.report import runs_table
from lbgen_hf.reproduction.report import tables as report_tables

REPORTS = ("reproduction", "reproduction_images", "reproduction_captions")  # a machine each
_PER_ARM = ("arms", "metrics", "backbones", "shapes")


def tables() -> dict[str, str]:
    """The texts of reproduction.md by the names of their marks."""
    report = _all()
    kept = [arm for arm in report["arms"] if arm.endswith("_best")]  # at the step that the shipped LoRA's rule keeps
    of_runs = [arm for arm in kept if arm.removesuffix("_best") in RUNS]
    seconds = report["seconds"].values()
    cost = (
        f"Two processes of one thread each made these {len(seconds)} cells in {sum(seconds) / 2 / 3600:.1f} hours, on "
        "2 CPU cores with other work on them at times, the fine-tuning of their adapters included."
    )
    return report_tables(report) | {"cost": cost, "kept_runs": runs_table(report, ["lbgen", *of_runs], kept)}


def _all() -> dict[str, Any]:
    """What was measured on all machines."""
    return functools.reduce(merged, map(read_results, REPORTS))


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two reports as one; what both have is the first's.

    Raises:
        ValueError: they are of other settings, or differ in what both measured.
    """
    for name in ("lbgen_hf", "settings", "world", "models", "pairs"):
        if first[name] != second[name]:
            raise ValueError(f"the two runs differ in {name}")
    for arm in first["metrics"].keys() & second["metrics"].keys():
        for metric in first["metrics"][arm].keys() | second["metrics"][arm].keys():
            if not _agree(*(report["metrics"][arm].get(metric) for report in (first, second))):
                raise ValueError(f"the two runs differ in {metric} of {arm}")
    known = [*standard_arms({"lbGen": "", "context swap": ""})]
    arms = sorted(second["arms"] | first["arms"], key=lambda arm: known.index(arm) if arm in known else len(known))
    found = {(order["metric"], order["left"], order["right"]): order for order in second["orders"] + first["orders"]}
    return first | {
        **{name: _in_order(second[name] | first[name], arms) for name in _PER_ARM},
        "orders": [
            found[key] for order in expected_orders() if (key := (order.metric, order.left, order.right)) in found
        ],
        "seconds": second["seconds"] | first["seconds"],
        "missing_arms": [title for title in first["missing_arms"] if title in second["missing_arms"]],
    }


def _agree(one: list[float | None] | None, other: list[float | None] | None) -> bool:
    """Whether an estimate was measured as the same value twice, up to rounding."""
    if not one or not other or one[0] is None or other[0] is None:
        return one == other
    return math.isclose(one[0], other[0], rel_tol=1e-5, abs_tol=1e-5)


def _in_order(of_arms: dict[str, Any], arms: list[str]) -> dict[str, Any]:
    return {arm: of_arms[arm] for arm in arms if arm in of_arms}


def main() -> None:
    report = _all()
    images = Path(__file__).with_name("images")
    save_frontier(report, images / "reproduction-frontier.png")
    save_few_shot(report, images / "reproduction-few_shot.png")
    save_doses(report, images / "reproduction-doses.png")


if __name__ == "__main__":
    main()
