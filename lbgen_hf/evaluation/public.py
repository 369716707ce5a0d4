"""The public benchmarks of bias, read from the user's own copies: images, cues and class mappings.

The mappings from ImageNet's classes belong to the benchmarks' authors. They are read from the authors' files, without
running them, and their counts are checked.
"""

import ast
import dataclasses
import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.images import ImageFiles
from lbgen_hf.files import IMAGE_SUFFIXES

IN9_PARTITIONS = ("original", "mixed_same", "mixed_rand")


@dataclasses.dataclass(frozen=True)
class PublicBenchmark:
    """Images whose classes are sets of ImageNet-1k's.

    Attributes:
        images: labelled by class; in Cue Conflict by the shape's.
        cues: (n,) what else is known of each image: the texture's class id, the number of uncommon attributes, or the
            name of its partition.
        imagenet_ids: the ImageNet-1k ids of each class, by its name.
    """

    images: ImageFiles
    cues: list
    imagenet_ids: Mapping[str, Sequence[int]]


def cue_conflict(folder: Path, num_images: int = 1280, num_ids: int = 207) -> PublicBenchmark:
    """Cue Conflict: a copy of github.com/rgeirhos/texture-vs-shape, or its stimuli beside its human_categories.py.

    Raises:
        UserError: a file is missing, or its counts are not as expected.
    """
    table = _find(folder, "human_categories.py")
    ids = {
        name.removesuffix("_indices"): tuple(value)
        for name, value in _literals(table).items()
        if name.endswith("_indices")
    }
    _check_counts(ids, num_classes=16, num_ids=num_ids, path=table)
    classes = sorted(ids)
    paths, shapes, textures = [], [], []
    for path in sorted(folder.rglob("*.png")):
        cues = re.fullmatch(r"([a-z]+)\d+-([a-z]+)\d+", path.stem)  # airplane1-bicycle2: shape, then texture
        if cues and cues[1] in ids and cues[2] in ids and path.parent.name == cues[1]:
            paths.append(path)
            shapes.append(classes.index(cues[1]))
            textures.append(classes.index(cues[2]))
    if len(paths) != num_images:
        raise UserError(
            f"expected {num_images} images named such as airplane/airplane1-bicycle2.png in {folder}, "
            f"found {len(paths)}"
        )
    return PublicBenchmark(ImageFiles(paths, shapes, classes, folder), textures, {name: ids[name] for name in classes})


def category_decisions(logits: Tensor, imagenet_ids: Mapping[str, Sequence[int]], head_ids: Sequence[int]) -> Tensor:
    """Decisions among categories: the one whose ImageNet classes have the highest mean probability.

    Args:
        logits: (n, C).
        imagenet_ids: of each category, by its name; a decision is its place.
        head_ids: the ImageNet id of each of the C classes.

    Raises:
        UserError: the head has no class of some category.
    """
    columns = columns_of_categories(imagenet_ids, head_ids)
    probabilities = logits.double().softmax(1)
    means = [probabilities[:, of_category].mean(1) for of_category in columns]
    return torch.stack(means, 1).argmax(1)


def mapped_decisions(logits: Tensor, imagenet_ids: Mapping[str, Sequence[int]], head_ids: Sequence[int]) -> Tensor:
    """Decisions among categories: the argmax over all classes, then its category; -1 where it belongs to none.

    Args and raises as `category_decisions`.
    """
    columns_of_categories(imagenet_ids, head_ids)
    category = {i: k for k, ids in enumerate(imagenet_ids.values()) for i in ids}
    of_column = torch.tensor([category.get(i, -1) for i in head_ids])
    return of_column[logits.argmax(1)]


def columns_of_categories(imagenet_ids: Mapping[str, Sequence[int]], head_ids: Sequence[int]) -> list[list[int]]:
    """The head's columns that belong to each category; args and raises as `category_decisions`."""
    columns = {imagenet_id: column for column, imagenet_id in enumerate(head_ids)}
    found = {name: [columns[i] for i in ids if i in columns] for name, ids in imagenet_ids.items()}
    for name, of_category in found.items():
        if not of_category:  # it would be wrong on all of that category
            raise UserError(f"the classifier knows no class of the category {name!r}, so it cannot decide for it")
    return list(found.values())


def focus(folder: Path, num_ids: int = 226) -> PublicBenchmark:
    """FOCUS: the unzipped dataset, with dataset.py and evaluate_model.py of github.com/priyathamkat/focus in it.

    `annotations.db` has the class, time, weather and locations of each image; evaluate_model.py says which of them are
    uncommon for which class.

    Raises:
        UserError: a file is missing, or its counts are not as expected.
    """
    database = _find(folder, "annotations.db")
    codes = _literals(_find(folder, "dataset.py"))
    rules_file = _find(folder, "evaluate_model.py")
    rules = _literals(rules_file)
    names = ("categories", "times", "weathers", "locations")
    missing = [name for name in names if name not in codes]
    missing += [name for name in ("uncommon", "label_to_correct_idxes") if name not in rules]
    if missing:
        raise UserError(f"{folder}: {missing[0]} is in neither dataset.py nor evaluate_model.py of FOCUS")
    categories, times, weathers, locations = (codes[name] for name in names)
    ids = {name: tuple(rules["label_to_correct_idxes"][code]) for name, code in categories.items()}
    _check_counts(ids, num_classes=10, num_ids=num_ids, path=rules_file)

    paths, labels, num_uncommon = [], [], []
    for file_name, category, time, weather, places in _annotations(database):
        rule = rules["uncommon"][categories[category]]
        uncommon = [
            times[time] in rule["time"],
            weathers[weather] in rule["weather"],
            any(locations[place] in rule["locations"] for place in places.split(", ")),
        ]
        paths.append(database.parent / file_name.lstrip("./"))
        labels.append(list(categories).index(category))
        num_uncommon.append(sum(uncommon))
    images = ImageFiles(paths, labels, list(categories), folder)
    return PublicBenchmark(images, num_uncommon, ids)


def imagenet_9(folder: Path, images_per_partition: int = 4050, num_ids: int = 370) -> PublicBenchmark:
    """ImageNet-9: the backgrounds challenge's folders original, mixed_same and mixed_rand, and its in_to_in9.json.

    Raises:
        UserError: a file is missing, or its counts are not as expected.
    """
    table = _find(folder, "in_to_in9.json")
    try:
        mapping = json.loads(table.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{table} is not JSON: {error}") from error
    ids: dict[str, tuple[int, ...]] = {
        str(k): tuple(int(i) for i, category in mapping.items() if category == k) for k in range(9)
    }
    _check_counts(ids, num_classes=9, num_ids=num_ids, path=table)
    paths, labels, partitions, classes = [], [], [], []
    for partition in IN9_PARTITIONS:
        root = next((p for p in sorted(folder.rglob(partition)) if p.is_dir()), None)
        if root is None:
            raise UserError(f"{folder} has no folder {partition}")
        root = root / "val" if (root / "val").is_dir() else root
        classes = sorted(path.name for path in root.iterdir() if path.is_dir())
        if len(classes) != 9:
            raise UserError(f"expected the folders of 9 classes in {root}, found {len(classes)}")
        found = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((root / name).iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if len(found) != images_per_partition:
            raise UserError(f"expected {images_per_partition} images in {root}, found {len(found)}")
        paths += [path for path, _ in found]
        labels += [label for _, label in found]
        partitions += [partition] * len(found)
    by_name = dict(zip(classes, ids.values(), strict=True))
    return PublicBenchmark(ImageFiles(paths, labels, classes, folder), partitions, by_name)


def _find(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    found = sorted(folder.rglob(name))
    if not found:
        raise UserError(f"{folder} has no {name}: put the benchmark authors' file there")
    return found[0]


def _literals(path: Path) -> dict[str, Any]:
    """The literal values that a Python file assigns, at its top level or in its classes; nothing is run."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a Python file: {error}") from error
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    found: dict[str, Any] = {}
    for node in (node for body in bodies for node in body):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found.setdefault(node.targets[0].id, ast.literal_eval(node.value))
            except ValueError:
                continue  # computed, not a literal
    return found


def _check_counts(ids: Mapping[str, Sequence[int]], num_classes: int, num_ids: int, path: Path) -> None:
    found = {i for of_class in ids.values() for i in of_class}
    if (len(ids), len(found)) != (num_classes, num_ids) or not all(ids.values()):
        raise UserError(
            f"expected {num_ids} ImageNet ids in {num_classes} classes in {path}, found {len(found)} in {len(ids)}"
        )


def _annotations(database: Path) -> list[tuple[str, str, str, str, str]]:
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        query = "SELECT file_name, category, time, weather, locations FROM annotations ORDER BY file_name"
        return connection.execute(query).fetchall()
    except sqlite3.DatabaseError as error:
        raise UserError(f"cannot read the annotations in {database}: {error}") from error
    finally:
        connection.close()
