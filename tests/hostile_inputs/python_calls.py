"""Calls of the Python API that must be refused with a `UserError`."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from places import CLASS_LISTS, CONFIGS, RECORDS

from lbgen_hf import ClipFeatures, DatasetFolder, LbGenConfig, LbGenPipeline, load_class_names, load_quality_scorer

Places = dict[str, Path]
Call = Callable[[LbGenPipeline, Places], object]
_NAN, _INF = float("nan"), float("inf")


def _calls_of_the_pipeline() -> dict[str, Call]:
    """`pipe(...)` of a pipeline with the classes tench, goldfish, crane, star."""
    labels = [
        "tenhc",
        "",
        4,
        -1,
        1.5,
        True,
        None,
        b"star",
        {"star"},
        {"star": 1},
        object(),
        [],
        ["star", None],
        [["star"]],
    ]
    labels += [np.array([]), np.array([0.5]), np.array([True]), np.array([9]), torch.tensor([0.5]), torch.tensor([4])]
    keywords: list[dict] = [{"class_labels": label} for label in labels]
    for name, values in {
        "images_per_class": [0, -1, 1.5, True, "2", _NAN, 10**12],
        "num_images_per_prompt": [0, -1, 1.5, "2"],
        "seed": [1.5, "0", True, _NAN, [0]],
        "num_inference_steps": [0, -1, 1.5, "4", 1001, 10**12, _NAN],
        "guidance_scale": [_NAN, _INF, -_INF, "2", 10**400],
        "guidance_start": [-0.1, 1.1, _NAN, "0"],
        "guidance_stop": [-0.1, 1.1, _NAN, "1"],
        "guidance_rescale": [-1, _NAN, _INF],
        "eta": [-0.1, 1.1, _NAN],
        "height": [0, -8, 1.5, 100_000, "64", 7],
        "width": [0, -8, 1.5, 100_000, "64", 63],
        "negative_prompt": [["a", "b"], [], 3],
        "output_type": ["jpeg", "", 3],
        "prompt": [["a", "b"], [], 3],
        "clip_skip": [-1, 1.5, 99],
        "latents": [torch.zeros(2, 4, 8, 8), torch.full((1, 4, 8, 8), _NAN), torch.zeros(3)],
        "prompt_embeds": [torch.zeros(3), torch.full((1, 16, 32), _NAN)],
    }.items():
        keywords += [{"class_labels": "star", name: value} for value in values]
    keywords += [
        {"class_labels": "star", "guidance_start": 0.6, "guidance_stop": 0.5},
        {"class_labels": "star", "seed": 0, "generator": torch.Generator()},
        {"class_labels": ["star"] * 3, "images_per_class": 2, "num_images_per_prompt": 3},
        {"class_labels": "star", "images_per_class": 2, "generator": [torch.Generator()]},
        {"prompt": []},
        {"prompt": ["star", None]},
        {"class_labels": "star", "negative_prompt": [None]},
        {},
    ]
    return {f"pipe({_shown(k)})": lambda pipe, places, k=k: pipe(**k) for k in keywords}


def _pipelines() -> dict[str, Call]:
    """`LbGenPipeline.from_pretrained`, and what is put on a pipeline."""
    sources = ["", "lbgen-tny", "nobody/nothing", "a/b/c", "../..", 3, None]
    names = ["missing", "empty", "file", "hollow", "broken-index", "homeless-lora", "lora", "pickled-lora"]
    calls: dict[str, Call] = {
        f"from_pretrained({source!r})": lambda pipe, places, s=source: LbGenPipeline.from_pretrained(s)
        for source in sources
    }
    calls |= {
        f"from_pretrained({n})": lambda pipe, places, n=n: LbGenPipeline.from_pretrained(places[n]) for n in names
    }
    lists = {"empty": [], "twice": ["a", "a"], "blank": ["a", " "], "number": ["a", 3], "wnids": ["a"]}
    for name, labels in lists.items():
        options = {"class_labels": labels, **({"class_wnids": ["n1", "n2"]} if name == "wnids" else {})}
        calls[f"class_labels={labels!r} ({name})"] = lambda pipe, places, o=options: LbGenPipeline(
            **{**pipe.components, "requires_safety_checker": False, **o}
        )
    for name in ("missing", "empty", "file", "text-lora", "empty-lora", "pickled-lora", "dataset"):
        calls[f"load_lora_weights({name})"] = lambda pipe, places, n=name: pipe.load_lora_weights(str(places[n]))
    calls["load_lora_weights(nobody/nothing)"] = lambda pipe, places: pipe.load_lora_weights("nobody/nothing")
    return calls


def _loaders() -> dict[str, Call]:
    """Class lists, datasets, scorers and CLIP models."""
    calls: dict[str, Call] = {}
    for source in ("", "imagenet-2k", "nobody/nothing", "biaslab.txt"):
        calls[f"load_class_names({source!r})"] = lambda pipe, places, s=source: load_class_names(s)
    for name in ("missing", "empty", "strangers", "images"):
        calls[f"load_class_names({name})"] = lambda pipe, places, n=name: load_class_names(places["root"] / n)
    for name in CLASS_LISTS:
        calls[f"load_class_names({name}.txt)"] = lambda pipe, places, n=name: load_class_names(
            places["classes"] / f"{n}.txt"
        )
    for name in RECORDS:
        calls[f"DatasetFolder({name})"] = lambda pipe, places, n=name: DatasetFolder(places["records"] / n)
    for name in ("missing", "empty", "file", "strangers"):
        calls[f"DatasetFolder({name})"] = lambda pipe, places, n=name: DatasetFolder(places[n])
    for image_id in (-1, 60, 10**12, 1.5, "0", None, True):
        calls[f"image({image_id!r})"] = lambda pipe, places, i=image_id: DatasetFolder(places["dataset"]).image(i)
    calls["image in a shard that is missing"] = lambda pipe, places: DatasetFolder(places["incomplete"]).image(25)
    calls["image in a shard that is cut"] = lambda pipe, places: DatasetFolder(places["truncated"]).image(25)
    for name in (
        "",
        "nope",
        "vlm:",
        "pyiqa:",
        ":",
        "qalign:x",
        "LBGEN-TINY",
        "pyiqa:nope",
        "vlm:nobody/nothing",
        3,
        None,
    ):
        calls[f"load_quality_scorer({name!r})"] = lambda pipe, places, n=name: load_quality_scorer(n)
    for options in (
        {"bits": 8},
        {"bits": 3},
        {"gradient_checkpointing": True},
        {"device": "tpu"},
        {"device": "cuda:99"},
    ):
        calls[f"load_quality_scorer(**{options})"] = lambda pipe, places, o=options: load_quality_scorer(
            "lbgen-tiny", **o
        )
    for arguments in (("nope",), ("",), ("ViT-B-32", "nope"), ("ViT-B-32", None), ("hf-hub:nobody/nothing",), (3,)):
        calls[f"ClipFeatures{arguments}"] = lambda pipe, places, a=arguments: ClipFeatures.from_pretrained(*a)
    for name in ("missing", "empty", "file", "dataset"):
        calls[f"ClipFeatures({name})"] = lambda pipe, places, n=name: ClipFeatures.from_pretrained(places[n])
    return calls


def _configs() -> dict[str, Call]:
    """`LbGenConfig(...)`, and its YAML files."""
    bad: list[tuple[str, list]] = [
        ("num_train_epochs train_batch_size lora_rank checkpointing_steps", [0, -1, 1.5, "4", True, _NAN, None]),
        ("max_train_steps checkpoints_total_limit num_gradient_steps", [0, -1, 1.5, "4", True, _NAN]),
        ("learning_rate discriminator_learning_rate", [0, -1, _NAN, _INF, "1", 2, None]),
        ("max_grad_norm lora_alpha", [0, -1, _NAN, _INF, "1", True]),
        ("entire_weight individual_weight quality_weight", [-1, _NAN, _INF, "1", None]),
        ("guidance_start guidance_stop", [-0.1, 1.1, _NAN, "1"]),
        ("seed", [-1, 1.5, "0", 2**63, True]),
        ("ema_decay", [-0.1, 1, _NAN, "0"]),
        ("validation_images_per_class", [0, 1, 1.5]),
        ("scheduler", ["euler", "", 3, None]),
        ("keep", ["worst", "", None]),
        ("mixed_precision", ["fp8", "", 16]),
        ("lr_scheduler real_classes", ["nope", 3, None]),
    ]
    calls: dict[str, Call] = {
        f"LbGenConfig({name}={value!r})": lambda pipe, places, n=name, v=value: LbGenConfig(**{n: v})
        for names, values in bad
        for name in names.split()
        for value in values
    }
    calls |= {
        f"LbGenConfig.from_yaml({n})": lambda pipe, places, n=n: LbGenConfig.from_yaml(places["configs"] / f"{n}.yaml")
        for n in CONFIGS
    }
    calls["from_yaml(missing)"] = lambda pipe, places: LbGenConfig.from_yaml(places["missing"])
    return calls


def _shown(keywords: dict) -> str:
    shown = {name: re.sub(" at 0x[0-9a-f]+", "", " ".join(repr(value).split())) for name, value in keywords.items()}
    return ", ".join(f"{name}={value[:40]}" for name, value in shown.items())


CALLS: dict[str, Call] = {**_calls_of_the_pipeline(), **_pipelines(), **_loaders(), **_configs()}
