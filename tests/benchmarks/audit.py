"""How the audit does where the truth is known: false alarms on shuffled labels, and speed.

    python tests/benchmarks/audit.py false-alarms
    python tests/benchmarks/audit.py speed

Results go to tests/benchmarks/results/audit.json, each part beside the other.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "audit.json"


def random_labels(rng: np.random.Generator, num: int, num_classes: int, major: float | None) -> np.ndarray:
    rest = rng.integers(1 if major else 0, num_classes, num)
    labels = np.where(rng.random(num) < major, 0, rest) if major else rest
    labels[: 5 * num_classes] = np.arange(5 * num_classes) % num_classes
    return rng.permutation(labels)


def false_alarms(shuffles: int) -> dict:
    """The share of label shuffles with any alarm among 13 attributes, by number of classes and balance."""
    from lbgen_hf.evaluation.audit.attributes import ATTRIBUTES
    from lbgen_hf.evaluation.audit.findings import examine_all, verdicts

    attributes = {name: attribute for name, attribute in ATTRIBUTES.items() if not attribute.categorical}
    found = {}
    for num_classes in (2, 12, 100):
        for major in (None, 0.96):
            rng = np.random.default_rng(0)
            num = max(200, 10 * num_classes)
            values = {name: rng.normal(size=(num, len(a.steps))) for name, a in attributes.items()}
            alarms, single, p_values = 0, 0, 0
            for seed in range(shuffles):
                labels = random_labels(rng, num, num_classes, major)
                findings = examine_all(attributes, values, labels, num_classes, seed=seed)
                alarmed = [word in ("weak", "clear", "strong") for word in verdicts(findings)]
                alarms, single = alarms + any(alarmed), single + sum(alarmed)
                p_values += sum(finding.relation.p_value <= 0.05 for finding in findings)
            tests = shuffles * len(attributes)
            name = f"{num_classes} classes, {'96:4' if major else 'balanced'}"
            found[name] = {
                "shuffles": shuffles,
                "any_alarm": alarms / shuffles,
                "alarm_an_attribute": single / tests,
                "p_value_up_to_0.05": p_values / tests,
            }
            print(name, found[name], flush=True)
    return found


def speed(num: int) -> dict:
    """Seconds and peak memory of auditing JPEG files of 64x64, all steps, and what 100,000 would take at this rate."""
    import os

    import datasets

    from lbgen_hf import audit

    sys.path.insert(0, str(HERE.parent / "evaluation" / "audit"))
    from worlds import as_dataset, encode, planted_scenes, render_uint8

    scenes = planted_scenes(512)
    pixels, labels = render_uint8(scenes), scenes.labels
    rng = np.random.default_rng(0)
    contents = [encode(rng.permuted(pixels[i % 512], axis=2), "JPEG", quality=90) for i in range(num)]
    with tempfile.TemporaryDirectory() as folder:
        data = as_dataset(contents, [int(labels[i % 512]) for i in range(num)], [str(i) for i in range(16)])
        data.to_parquet(f"{folder}/data.parquet")
        del data, contents
        rows = datasets.load_dataset("parquet", data_files=f"{folder}/data.parquet", streaming=True, split="train")
        wall, used = time.perf_counter(), time.process_time()
        audit(rows)
        wall, used = time.perf_counter() - wall, time.process_time() - used
    return {
        "images": num,
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(used, 1),
        "cpu_minutes_of_100000": round(used / num * 100_000 / 60, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("false-alarms").add_argument("--shuffles", type=int, default=200)
    parts.add_parser("speed").add_argument("--images", type=int, default=4000)
    options = parser.parse_args()
    found = false_alarms(options.shuffles) if options.part == "false-alarms" else speed(options.images)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    results[options.part] = found
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
