"""How the audit does where the truth is known: false alarms on shuffled labels, and speed.

    python tests/benchmarks/audit.py false-alarms
    python tests/benchmarks/audit.py speed --images 10000 100000

Results go to tests/benchmarks/results/audit.json, each part beside the other.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "audit.json"
sys.path.insert(0, str(HERE.parent / "evaluation" / "audit"))


def random_labels(rng: np.random.Generator, num: int, num_classes: int, major: float | None) -> np.ndarray:
    rest = rng.integers(1 if major else 0, num_classes, num)
    labels = np.where(rng.random(num) < major, 0, rest) if major else rest
    labels[: 5 * num_classes] = np.arange(5 * num_classes) % num_classes
    return rng.permutation(labels)


def false_alarms(shuffles: int, class_counts: Sequence[int]) -> dict:
    """The share of label shuffles with any alarm among all attributes of real files, by number of classes and balance.

    The attributes are measured once, on unbiased scenes in files of several formats and qualities; only labels shuffle.
    An attribute that 5 of 99 shuffles match is not tried again with the audit's 999: an alarm needs p = 0.0013.
    """
    from lbgen_hf.evaluation.audit.attributes import ATTRIBUTES
    from lbgen_hf.evaluation.audit.findings import examine, verdicts

    measured = unbiased_values(max(200, 10 * max(class_counts)))
    found = {}
    for num_classes in class_counts:
        for major in (None, 0.96):
            rng = np.random.default_rng(num_classes)
            num = max(200, 10 * num_classes)
            values = {name: column[:num] for name, column in measured.items()}
            alarms, single, p_values, tests = 0, 0, 0, 0
            for seed in range(shuffles):
                labels = random_labels(rng, num, num_classes, major)
                findings = []
                for name, attribute in ATTRIBUTES.items():
                    finding = examine(attribute, values[name], labels, num_classes, resamples=99, seed=seed)
                    if finding is None:
                        continue
                    if finding.relation.p_value <= 0.05:
                        p_values += 1
                        finding = examine(attribute, values[name], labels, num_classes, seed=seed)
                    findings.append(finding)
                alarmed = [word in ("weak", "clear", "strong") for word in verdicts(findings)]
                alarms, single, tests = alarms + any(alarmed), single + sum(alarmed), tests + len(alarmed)
            name = f"{num_classes} classes, {'96:4' if major else 'balanced'}"
            interval = binomtest(alarms, shuffles).proportion_ci(0.95, method="wilson")
            found[name] = {
                "images": num,
                "shuffles": shuffles,
                "any_alarm": alarms / shuffles,
                "interval": [float(interval.low), float(interval.high)],
                "alarm_an_attribute": single / tests,
                "p_value_up_to_0.05": p_values / tests,
            }
            print(name, found[name], flush=True)
    return found


def unbiased_values(num: int) -> dict[str, np.ndarray]:
    """All attributes of scenes without a bias, half of them JPEG files of random quality."""
    from worlds import as_dataset, encode, measure, planted_scenes, render_uint8

    rng = np.random.default_rng(0)
    jpeg = rng.random(num) < 0.5
    contents = [
        encode(pixels, "JPEG", quality=int(rng.integers(50, 100))) if jpeg[i] else encode(pixels)
        for i, pixels in enumerate(render_uint8(planted_scenes(num)))
    ]
    values = measure(as_dataset(contents, [i % 2 for i in range(num)], ["a", "b"])).values
    order = rng.permutation(num)
    return {name: column[order] for name, column in values.items()}


def write_scenes(folder: Path, num: int) -> None:
    """A folder of class folders with JPEG files of `num` biaslab scenes, whose backgrounds tell some of the class."""
    chunks = range(0, num, 2000)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        list(pool.map(_write_chunk, [folder] * len(chunks), chunks, [min(2000, num - start) for start in chunks]))


def _write_chunk(folder: Path, start: int, num: int) -> None:
    import torch
    from worlds import CLASSES, encode, planted_scenes, render_uint8

    torch.set_num_threads(1)
    scenes = planted_scenes(num, "backgrounds", 0.3, seed=start)
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i, (pixels, label) in enumerate(zip(render_uint8(scenes), scenes.labels.tolist(), strict=True)):
        (folder / CLASSES[label] / f"{start + i:06d}.jpg").write_bytes(encode(pixels, "JPEG", quality=90))


def speed(num: int) -> dict:
    """Seconds and peak memory of `lbgen audit FOLDER --out`, its start and its page included."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_scenes(folder / "scenes", num)
        load, start = os.getloadavg()[0], time.perf_counter()
        command = [sys.executable, "-m", "lbgen_hf", "audit", str(folder / "scenes"), "--out", str(folder / "audit")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        if os.waitstatus_to_exitcode(status):
            raise RuntimeError(f"{' '.join(command)} failed")
        audited = json.loads((folder / "audit" / "audit.json").read_text(encoding="utf-8"))
    return {
        "images": audited["images"],
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": used.ru_maxrss // 1024,
        "cpus": os.cpu_count(),
        "load_average_before": round(load, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    alarms = parts.add_parser("false-alarms")
    alarms.add_argument("--shuffles", type=int, default=200)
    alarms.add_argument("--classes", type=int, nargs="+", default=[2, 12, 100])
    parts.add_parser("speed").add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    options = parser.parse_args()
    if options.part == "speed":
        found = {str(num): speed(num) for num in options.images}
    else:
        found = false_alarms(options.shuffles, options.classes)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    results[options.part] = results.get(options.part, {}) | found
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
