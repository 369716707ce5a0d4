"""What `lbgen evaluate` can measure: each benchmark loads its images once and turns a backbone into a cell.

A cell holds raw outcomes, one an image, and no scores: `scores.py` computes these, so that intervals can be paired.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lbgen_hf.class_names import load_class_names
from lbgen_hf.errors import UserError
from lbgen_hf.evaluation import biaslab, public
from lbgen_hf.evaluation.backbones import Backbone, imagenet_ids
from lbgen_hf.evaluation.features import Progress, cached
from lbgen_hf.evaluation.images import LabelledImages
from lbgen_hf.evaluation.probes import fit_linear, nearest_neighbours, select_c
from lbgen_hf.evaluation.splits import FEW_SHOT_SEEDS, few_shot_subset
from lbgen_hf.evaluation.transfer import (
    FEW_SHOT_FRACTIONS,
    TABLE_6,
    TransferDataset,
    load_any_dataset,
    load_transfer_dataset,
    load_validation_images,
)

# Raised when a benchmark measures in another way: cells of an earlier version are measured again.
PROTOCOL = 1


@dataclasses.dataclass(frozen=True)
class Run:
    """How outputs are computed: their cache, batch size, loader processes, and who is told how far it is."""

    cache: Path | None = None
    batch_size: int = 64
    num_workers: int = 0
    progress: Progress | None = None

    def logits(self, backbone: Backbone, images: LabelledImages) -> torch.Tensor:
        return cached(backbone, images, "logits", self.cache, **self._options())

    def features(self, backbone: Backbone, images: LabelledImages) -> torch.Tensor:
        return cached(backbone, images, "features", self.cache, **self._options())

    def _options(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "num_workers": self.num_workers, "progress": self.progress}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: unique in a report.
        kind: what its cells hold: "accuracy", "transfer", "few_shot", "texture_inclination", "context_bias" or
            "background_gap".
        load: reads or renders the images; raises `UserError` where they are not as expected.
        measure: backbone, loaded images and run to a cell's `data` and `details`.
        world: biaslab's version and hash, for its twins.
        check: raises `UserError` where the backbone's head is not what `measure` needs; before anything is computed.
    """

    name: str
    kind: str
    load: Callable[[], Any]
    measure: Callable[[Backbone, Any, Run], dict]
    world: dict | None = None
    check: Callable[[Backbone, Any], object] = lambda backbone, loaded: None


def parse_benchmarks(specs: Sequence[str]) -> list[Benchmark]:
    """Benchmarks from "biaslab", "biaslab-NAME", or "NAME=SOURCE", several of them separated by commas.

    Raises:
        UserError: a name is unknown, or a source is missing or given where none is taken.
    """
    benchmarks: dict[str, Benchmark] = {}
    for spec in (part.strip() for text in specs for part in text.split(",")):
        name, _, source = spec.partition("=")
        source = os.path.expanduser(source)  # which a shell does at the start of a word alone
        if name in _WITH_SOURCE:
            if not source:
                raise UserError(f"benchmark {name} needs its data: give {name}=FOLDER")
            found = _WITH_SOURCE[name](source)
        elif name in _BIASLAB or name == "biaslab":
            if source:
                raise UserError(f"benchmark {name} is made here and takes no folder, got {source}")
            found = [_BIASLAB[key]() for key in ([name] if name in _BIASLAB else _BIASLAB)]
        else:
            known = ["biaslab", *_BIASLAB, *(f"{key}=FOLDER" for key in _WITH_SOURCE)]
            raise UserError(f"unknown benchmark {name!r}; choose from {', '.join(known)}")
        for benchmark in found:
            if benchmark.name in benchmarks:
                raise UserError(f"benchmark {benchmark.name} is given twice")
            benchmarks[benchmark.name] = benchmark
    return list(benchmarks.values())


# --- accuracy on the training classes


def class_accuracy(backbone: Backbone, images: LabelledImages, run: Run) -> dict:
    """Top-1 over the head's classes, on the images of these classes; which ones these are is in `kept_images`."""
    columns = head_columns(backbone, images)
    known = torch.tensor([column is not None for column in columns])[torch.from_numpy(images.labels)]
    if not known.all():
        images = images.subset(known.nonzero()[:, 0].numpy())
    targets = torch.tensor([-1 if column is None else column for column in columns])[torch.from_numpy(images.labels)]
    correct = run.logits(backbone, images).argmax(1) == targets
    return {
        "data": {"correct": correct.int().tolist()},
        "details": {"images_of_other_classes": int((~known).sum()), "kept_images": images.fingerprint},
    }


def head_columns(backbone: Backbone, images: LabelledImages) -> list[int | None]:
    """The head's column of each class of a benchmark, by name or by wnid.

    Raises:
        UserError: there is no head, or it knows none of them.
    """
    class_names = images.class_names
    columns: list[int | None]
    if backbone.class_names and set(class_names) & set(backbone.class_names):
        names = list(backbone.class_names)
        columns = [names.index(name) if name in names else None for name in class_names]
    else:
        imagenet = load_class_names("imagenet-1k")
        head = {imagenet.wnids[i]: column for column, i in enumerate(imagenet_ids(backbone))}
        columns = [head.get(name) for name in class_names]
    if all(column is None for column in columns):
        raise UserError(f"{backbone.name} knows none of the {len(class_names)} classes, {class_names[0]!r} first")
    return columns


# --- transfer


def _transfer(backbone: Backbone, dataset: TransferDataset, run: Run) -> dict:
    train, val, test = ((run.features(backbone, split), _labels(split)) for split in _splits(dataset))
    selection = select_c(train, val, dataset.num_classes)
    both = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    probe = fit_linear(*both, dataset.num_classes, selection.c, start=selection.probe)
    neighbours = nearest_neighbours(both, test[0], dataset.num_classes)
    return {
        "data": {
            "correct": (probe.predict(test[0]) == test[1]).int().tolist(),
            "knn_correct": (neighbours == test[1]).int().tolist(),
        },
        "details": {"c": selection.c, "c_at_edge": selection.at_edge, "c_curve": selection.curve},
    }


def _few_shot(backbone: Backbone, dataset: TransferDataset, run: Run, fraction: float) -> dict:
    """Five subsets of the training images; C is chosen on the validation images, which are never trained on.

    Each fit has the same bound on L-BFGS iterations, each a pass over the images: a constant number of epochs.
    """
    train, val, test = ((run.features(backbone, split), _labels(split)) for split in _splits(dataset))
    correct, chosen = [], []
    for seed in FEW_SHOT_SEEDS:
        subset = torch.from_numpy(few_shot_subset(dataset.train.labels, fraction, seed))
        few = train[0][subset], train[1][subset]
        selection = select_c(few, val, dataset.num_classes)
        correct.append((selection.probe.predict(test[0]) == test[1]).int().tolist())
        chosen.append(selection)
        if fraction == 1:
            break  # every subset is the whole
    return {
        "data": {"correct": correct},
        "details": {
            "dataset": dataset.name,
            "fraction": fraction,
            "training_images": len(subset),
            "c": [selection.c for selection in chosen],
            "c_at_edge": any(selection.at_edge for selection in chosen),
        },
    }


def _splits(dataset: TransferDataset) -> tuple[LabelledImages, LabelledImages, LabelledImages]:
    return dataset.train, dataset.val, dataset.test


def _labels(images: LabelledImages) -> torch.Tensor:
    return torch.from_numpy(images.labels)


# --- bias, on the public benchmarks


def _head_ids(backbone: Backbone, benchmark: public.PublicBenchmark) -> list[int]:
    """The ImageNet-1k id of each class of the head.

    Raises:
        UserError: there is no head of ImageNet's classes, or it has no class of some category.
    """
    head_ids = imagenet_ids(backbone)
    public.columns_of_categories(benchmark.imagenet_ids, head_ids)
    return head_ids


def _public_cue_conflict(backbone: Backbone, benchmark: public.PublicBenchmark, run: Run) -> dict:
    head_ids = _head_ids(backbone, benchmark)
    decisions = public.category_decisions(run.logits(backbone, benchmark.images), benchmark.imagenet_ids, head_ids)
    return _cells(predictions=decisions, references=benchmark.images.labels, textures=benchmark.cues)


def _public_focus(backbone: Backbone, benchmark: public.PublicBenchmark, run: Run) -> dict:
    decisions = _mapped_decisions(backbone, benchmark, run)
    return _cells(predictions=decisions, references=benchmark.images.labels, num_uncommon=benchmark.cues)


def _public_imagenet_9(backbone: Backbone, benchmark: public.PublicBenchmark, run: Run) -> dict:
    decisions = _mapped_decisions(backbone, benchmark, run)
    return _cells(predictions=decisions, references=benchmark.images.labels, partitions=benchmark.cues)


def _mapped_decisions(backbone: Backbone, benchmark: public.PublicBenchmark, run: Run) -> torch.Tensor:
    head_ids = _head_ids(backbone, benchmark)
    return public.mapped_decisions(run.logits(backbone, benchmark.images), benchmark.imagenet_ids, head_ids)


# --- bias, on biaslab's twins


def _twin_columns(backbone: Backbone, twin: biaslab.CueConflict | biaslab.Backgrounds | tuple) -> list[int]:
    """The head's column of each class of a twin.

    Raises:
        UserError: there is no head, or it lacks a class of the benchmark.
    """
    images = twin[0] if isinstance(twin, tuple) else twin.images
    columns = head_columns(backbone, images)
    missing = [name for name, column in zip(images.class_names, columns, strict=True) if column is None]
    if missing:
        raise UserError(f"{backbone.name} lacks {len(missing)} of the {len(columns)} classes, {missing[0]!r} first")
    return [column for column in columns if column is not None]


def _class_predictions(
    backbone: Backbone, twin: biaslab.CueConflict | biaslab.Backgrounds | tuple, run: Run
) -> torch.Tensor:
    """Predicted ids in the benchmark's classes; -1 for a class of the head that the benchmark has not."""
    columns = _twin_columns(backbone, twin)
    images = twin[0] if isinstance(twin, tuple) else twin.images
    of_column = torch.full((backbone.num_classes,), -1)
    of_column[torch.tensor(columns)] = torch.arange(len(columns))
    return of_column[run.logits(backbone, images).argmax(1)]


def _twin_cue_conflict(backbone: Backbone, twin: biaslab.CueConflict, run: Run) -> dict:
    predictions, shapes, textures = twin.decisions(_class_predictions(backbone, twin, run))
    return _cells(predictions=predictions, references=shapes, textures=textures)


def _twin_contexts(backbone: Backbone, twin: tuple, run: Run) -> dict:
    images, num_uncommon = twin
    return _cells(
        predictions=_class_predictions(backbone, twin, run), references=images.labels, num_uncommon=num_uncommon
    )


def _twin_backgrounds(backbone: Backbone, twin: biaslab.Backgrounds, run: Run) -> dict:
    predictions = _class_predictions(backbone, twin, run).tolist()
    labels = twin.images.labels.tolist()
    measured = [i for i, name in enumerate(twin.partitions) if name != "recomposed"]
    control = [i for i, name in enumerate(twin.partitions) if name == "recomposed"]
    cell = _cells(
        predictions=[predictions[i] for i in measured],
        references=[labels[i] for i in measured],
        partitions=[twin.partitions[i] for i in measured],
    )
    cell["data"]["control_correct"] = [int(predictions[i] == labels[i]) for i in control]
    return cell


def _cells(**columns) -> dict:
    return {"data": {name: getattr(c, "tolist", lambda c=c: c)() for name, c in columns.items()}, "details": {}}


# --- the names


def _of_dataset(load: Callable[[], TransferDataset], name: str, few_shot: bool) -> list[Benchmark]:
    load = functools.cache(load)  # the fractions share their images
    if not few_shot:
        return [Benchmark(name, "transfer", load, _transfer)]
    return [
        Benchmark(f"{name}-few-shot-{fraction:g}", "few_shot", load, functools.partial(_few_shot, fraction=fraction))
        for fraction in FEW_SHOT_FRACTIONS
    ]


def _paper_datasets(source: str, few_shot: bool) -> list[Benchmark]:
    return [
        benchmark
        for name in TABLE_6
        for benchmark in _of_dataset(functools.partial(load_transfer_dataset, name, Path(source)), name, few_shot)
    ]


def _any(source: str, few_shot: bool) -> list[Benchmark]:
    return _of_dataset(functools.partial(load_any_dataset, source), Path(source).name, few_shot)


def _public(name: str, kind: str, load: Callable, measure: Callable) -> Callable[[str], list[Benchmark]]:
    return lambda source: [Benchmark(name, kind, functools.partial(load, Path(source)), measure, None, _head_ids)]


_WITH_SOURCE: dict[str, Callable[[str], list[Benchmark]]] = {
    "validation": lambda source: [
        Benchmark(
            "validation",
            "accuracy",
            functools.partial(load_validation_images, source),
            class_accuracy,
            check=head_columns,
        ),
    ],
    "transfer": functools.partial(_paper_datasets, few_shot=False),
    "few-shot": functools.partial(_paper_datasets, few_shot=True),
    **{
        name: lambda source, name=name: _of_dataset(
            functools.partial(load_transfer_dataset, name, Path(source)), name, False
        )
        for name in TABLE_6
    },
    "dataset": functools.partial(_any, few_shot=False),
    "dataset-few-shot": functools.partial(_any, few_shot=True),
    "cue-conflict": _public("cue-conflict", "texture_inclination", public.cue_conflict, _public_cue_conflict),
    "focus": _public("focus", "context_bias", public.focus, _public_focus),
    "imagenet-9": _public("imagenet-9", "background_gap", public.imagenet_9, _public_imagenet_9),
}


def _twin(name: str, kind: str, load: Callable, measure: Callable, **options: Any) -> Callable[[], Benchmark]:
    return lambda: Benchmark(name, kind, load, measure, biaslab.world(), **options)


_novel_classes = functools.cache(biaslab.novel_classes)

_BIASLAB: dict[str, Callable[[], Any]] = {
    "biaslab-validation": _twin(
        "biaslab-validation", "accuracy", biaslab.validation, class_accuracy, check=head_columns
    ),
    "biaslab-cue-conflict": _twin(
        "biaslab-cue-conflict", "texture_inclination", biaslab.cue_conflict, _twin_cue_conflict, check=_twin_columns
    ),
    "biaslab-contexts": _twin(
        "biaslab-contexts", "context_bias", biaslab.contexts, _twin_contexts, check=_twin_columns
    ),
    "biaslab-backgrounds": _twin(
        "biaslab-backgrounds", "background_gap", biaslab.backgrounds, _twin_backgrounds, check=_twin_columns
    ),
    "biaslab-novel": _twin("biaslab-novel", "transfer", _novel_classes, _transfer),
    **{
        f"biaslab-novel-few-shot-{fraction:g}": _twin(
            f"biaslab-novel-few-shot-{fraction:g}",
            "few_shot",
            _novel_classes,
            functools.partial(_few_shot, fraction=fraction),
        )
        for fraction in FEW_SHOT_FRACTIONS
    },
}
