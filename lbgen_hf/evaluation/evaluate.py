"""Measure checkpoints on benchmarks: one JSON a cell, so that a killed run resumes where it was."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.backbones import Backbone, check_backbone, load_backbone
from lbgen_hf.evaluation.benchmarks import PROTOCOL, Benchmark, Run, parse_benchmarks
from lbgen_hf.evaluation.features import Progress
from lbgen_hf.evaluation.images import LabelledImages
from lbgen_hf.evaluation.report import write_report
from lbgen_hf.files import locked, require_creatable, write_atomically


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint under the label of its recipe: checkpoints of one label are seeds, and averaged."""

    label: str
    path: str


def parse_checkpoints(specs: Sequence[str]) -> list[Checkpoint]:
    """Checkpoints from "CHECKPOINT" or "LABEL=CHECKPOINT"; a path that is there, as "runs/lr=0.1", has no label.

    Raises:
        UserError: there are none, one is given twice, or two without a label have the same name.
    """
    checkpoints, unlabelled = [], set()
    for spec in specs:
        label, separator, path = spec.partition("=")
        if separator and not os.path.exists(spec):
            path = os.path.expanduser(path)  # which a shell does at the start of a word alone
            checkpoints.append(Checkpoint(label, path))
        else:
            checkpoints.append(Checkpoint(Path(spec).name or spec, spec))
            unlabelled.add(checkpoints[-1].label)
    paths = [checkpoint.path for checkpoint in checkpoints]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise UserError(f"checkpoint {twice} is given twice")
    if not checkpoints:
        raise UserError("give at least one checkpoint")
    labels = [checkpoint.label for checkpoint in checkpoints]
    if any(labels.count(label) > 1 for label in unlabelled):
        raise UserError("two checkpoints have the same name; give LABEL=CHECKPOINT, one label for seeds of one recipe")
    return checkpoints


def evaluate(
    checkpoints: Sequence[str],
    benchmarks: Sequence[str],
    out: Path,
    *,
    device: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    confidence_level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Path:
    """Measure every checkpoint on every benchmark and write the report.

    Args:
        checkpoints: as `parse_checkpoints` takes them; the first label is what the others are compared with.
        benchmarks: as `parse_benchmarks` takes them.
        out: the report's folder: report.md, report.json, plots/, and cells/ and features/, which a later run reuses.
        device: default: the fastest.
        batch_size, num_workers: of the extraction of features.
        confidence_level, n_resamples, seed: of the bootstrap.
        progress: told how many images of how many are done.
        say: told what is being measured.

    Returns:
        The path of report.md.

    Raises:
        UserError: a checkpoint or a benchmark is not as it must be; names and configs are checked before any benchmark
            is read, the benchmarks before any model is loaded, and a model's head before any image is shown to it.
    """
    chosen = parse_checkpoints(checkpoints)
    wanted = parse_benchmarks(benchmarks)
    for checkpoint in chosen:
        check_backbone(checkpoint.path)
    require_creatable(out / "cells")
    with locked(out):
        loaded = [(benchmark, benchmark.load()) for benchmark in wanted]
        run = Run(out / "features", batch_size, num_workers, progress)
        cells = []
        for checkpoint in chosen:
            backbone = load_backbone(checkpoint.path, device)
            for benchmark, images in loaded:
                benchmark.check(backbone, images)
            for benchmark, images in loaded:
                cells.append(_measure(checkpoint, backbone, benchmark, images, run, out / "cells", say))
        return write_report(cells, out, confidence_level=confidence_level, n_resamples=n_resamples, seed=seed)


def _measure(
    checkpoint: Checkpoint,
    backbone: Backbone,
    benchmark: Benchmark,
    images: object,
    run: Run,
    folder: Path,
    say: Callable[[str], None],
) -> dict:
    """The cell, measured now or by an earlier run of the same backbone, images and protocol."""
    identity = {
        "benchmark": benchmark.name,
        "kind": benchmark.kind,
        "protocol": PROTOCOL,
        "weights_sha256": backbone.weights_sha256,
        "architecture_sha256": backbone.architecture_sha256,
        "transform": backbone.transform_key,
        "classes": _hash(backbone.class_names),
        "images": _cache_keys(images),
        "world": benchmark.world,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', benchmark.name)}-{digest}.json"
    if path.is_file():
        measured = json.loads(path.read_text(encoding="utf-8"))
    else:
        say(f"{checkpoint.label}: {benchmark.name}")
        measured = {**identity, **benchmark.measure(backbone, images, run)}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(measured) + "\n")
    return {**measured, "label": checkpoint.label, "checkpoint": checkpoint.path, "cell": f"cells/{path.name}"}


def _cache_keys(loaded: Any) -> list[str]:
    """Of all the splits that a benchmark loaded, and of what else it says of them."""
    if isinstance(loaded, LabelledImages):
        return [loaded.cache_key]
    if dataclasses.is_dataclass(loaded):
        loaded = [getattr(loaded, field.name) for field in dataclasses.fields(loaded)]
    return [part.cache_key if isinstance(part, LabelledImages) else _hash(part) for part in loaded]


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
