"""Fair timings on a noisy machine: interleaved repeats, and ratios taken within each repeat."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def compare(functions: dict[str, Callable[[], object]], repeats: int = 9, warmup: int = 1) -> dict[str, dict]:
    """Time functions against the first of them.

    Every repeat calls each function once, in an order that turns round, so that what slows the machine slows all alike.

    Args:
        functions: name to call; the first is the baseline.
        repeats: how many times each is timed.
        warmup: calls of each that are not timed.

    Returns:
        For each name: `seconds`, the median; `ratio`, the median over the repeats of baseline time / its time (above 1
        is faster than the baseline); `ratio_spread`, the ratio's quartiles; `repeats`.
    """
    names = list(functions)
    for _ in range(warmup):
        for function in functions.values():
            function()
    seconds = {name: [] for name in names}
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            functions[name]()
            seconds[name].append(time.perf_counter() - start)
    baseline = seconds[names[0]]
    result = {}
    for name in names:
        ratios = [base / own for base, own in zip(baseline, seconds[name], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        result[name] = {
            "seconds": round(statistics.median(seconds[name]), 6),
            "ratio": round(statistics.median(ratios), 4),
            "ratio_spread": [round(low, 4), round(high, 4)],
            "repeats": repeats,
        }
    return result


def write_results(name: str, results: dict) -> Path:
    """Write what a benchmark measured, and on what, to `results/<name>.json`."""
    import torch

    machine = {
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine, **results}, indent=2) + "\n")
    return path


def _cpu_name() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
