"""Adapters of the public benchmarks, on small copies of their layouts; the tables in them are made up."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lbgen_hf.errors import UserError
from lbgen_hf.evaluation import public

CATEGORIES = [f"c{chr(97 + i)}" for i in range(16)]


def save_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def cue_conflict(tmp_path: Path) -> Path:
    lines = [f"    {name}_indices = [{10 * i}, {10 * i + 1}]" for i, name in enumerate(CATEGORIES)]
    code = "import nothing\n\n\nclass HumanCategories:\n    other = [n for n in range(3)]\n" + "\n".join(lines)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "human_categories.py").write_text(code)
    for shape, texture in ((0, 1), (0, 2), (1, 0), (3, 3)):
        save_image(tmp_path / "stimuli" / CATEGORIES[shape] / f"{CATEGORIES[shape]}1-{CATEGORIES[texture]}2.png")
    save_image(tmp_path / "figures" / "overview.png")
    return tmp_path


def test_cue_conflict(cue_conflict: Path) -> None:
    benchmark = public.cue_conflict(cue_conflict, num_images=4, num_ids=32)
    assert benchmark.images.labels.tolist() == [0, 0, 1, 3]
    assert benchmark.cues == [1, 2, 0, 3]
    assert benchmark.imagenet_ids["cc"] == (20, 21)


def test_cue_conflicts_counts_are_checked(cue_conflict: Path) -> None:
    with pytest.raises(UserError, match=r"expected 207 ImageNet ids in 16 classes in .*found 32 in 16"):
        public.cue_conflict(cue_conflict)
    with pytest.raises(UserError, match=r"expected 1280 images named such as .*found 4"):
        public.cue_conflict(cue_conflict, num_ids=32)
    (cue_conflict / "code" / "human_categories.py").unlink()
    with pytest.raises(UserError, match=r"has no human_categories\.py"):
        public.cue_conflict(cue_conflict)
    with pytest.raises(UserError, match="there is no folder"):
        public.cue_conflict(cue_conflict / "none")


def test_category_decisions_are_by_mean_probability() -> None:
    """A category of two classes at 0.3 loses to one of a single class at 0.4."""
    logits = torch.tensor([[0.3, 0.3, 0.4]]).log()
    assert public.category_decisions(logits, {"a": (5, 6), "b": (7,)}, [5, 6, 7]).tolist() == [1]
    another_order = public.category_decisions(logits, {"a": (5, 6), "b": (7,)}, [7, 6, 5])
    assert another_order.tolist() == [0]
    with pytest.raises(UserError, match="knows no class of the category 'dog'"):
        public.category_decisions(logits, {"a": (5, 6), "dog": (9,)}, [5, 6, 7])


def test_mapped_decisions_are_the_argmax_of_all_classes() -> None:
    logits = torch.eye(4)
    assert public.mapped_decisions(logits, {"a": (10, 12), "b": (11,)}, [10, 11, 12, 13]).tolist() == [0, 1, 0, -1]
    with pytest.raises(UserError, match="knows no class of the category 'dog'"):  # of which all images would be wrong
        public.mapped_decisions(logits, {"a": (10, 12), "dog": (99,)}, [10, 11, 12, 13])


@pytest.fixture
def focus(tmp_path: Path) -> Path:
    names = ["truck", "car", "plane", "ship", "cat", "dog", "horse", "deer", "frog", "bird"]
    codes = {
        "categories": {name: i for i, name in enumerate(names)},
        "times": {"day": 0, "night": 1, "none": 2},
        "weathers": {"sunny": 0, "foggy": 1, "none": 2},
        "locations": {"grass": 0, "indoors": 1, "none": 2},
    }
    code = "import torch\n\n\nclass Focus(object):\n" + "\n".join(f"    {k} = {v!r}" for k, v in codes.items())
    (tmp_path / "dataset.py").write_text(code)
    rules = {i: {"time": {1}, "weather": {1}, "locations": {1}} for i in range(10)}
    rules[8]["time"] = {}
    ids = {i: {2 * i, 2 * i + 1} for i in range(10)}
    (tmp_path / "evaluate_model.py").write_text(
        f"import clip\n\nuncommon = {rules!r}\nlabel_to_correct_idxes = {ids!r}\n"
    )
    rows = [
        ("/cat/1.jpg", "cat", "day", "sunny", "grass", "no"),
        ("/cat/2.jpg", "cat", "night", "sunny", "grass, indoors", "no"),
        ("/frog/1.jpg", "frog", "night", "foggy", "indoors", "yes"),
        ("/dog/1.jpg", "dog", "night", "foggy", "indoors", "no"),
    ]
    connection = sqlite3.connect(tmp_path / "annotations.db")
    connection.execute("CREATE TABLE annotations (file_name, category, time, weather, locations, humans)")
    connection.executemany("INSERT INTO annotations VALUES (?, ?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    for row in rows:
        save_image(tmp_path / row[0].lstrip("/"))
    return tmp_path


def test_focus(focus: Path) -> None:
    benchmark = public.focus(focus, num_ids=20)
    found = {
        path.relative_to(focus).as_posix(): k for path, k in zip(benchmark.images.paths, benchmark.cues, strict=True)
    }
    assert found == {"cat/1.jpg": 0, "cat/2.jpg": 2, "frog/1.jpg": 2, "dog/1.jpg": 3}
    assert benchmark.imagenet_ids["cat"] == (8, 9)
    assert [benchmark.images.class_names[label] for label in benchmark.images.labels] == ["cat", "cat", "dog", "frog"]


def test_focus_in_the_wrong_shape(focus: Path) -> None:
    with pytest.raises(UserError, match="expected 226 ImageNet ids in 10 classes"):
        public.focus(focus)
    (focus / "cat" / "2.jpg").unlink()
    with pytest.raises(UserError, match=r"cat/2\.jpg is missing"):
        public.focus(focus, num_ids=20)
    (focus / "evaluate_model.py").write_text("uncommon = {}")
    with pytest.raises(UserError, match="label_to_correct_idxes is in neither"):
        public.focus(focus, num_ids=20)


@pytest.fixture
def imagenet_9(tmp_path: Path) -> Path:
    (tmp_path / "in_to_in9.json").write_text(json.dumps({str(i): i % 10 if i % 10 < 9 else -1 for i in range(20)}))
    for partition in public.IN9_PARTITIONS:
        for label in range(9):
            save_image(tmp_path / "bg_challenge" / partition / "val" / f"0{label}_class" / "a.JPEG")
    return tmp_path


def test_imagenet_9(imagenet_9: Path) -> None:
    benchmark = public.imagenet_9(imagenet_9, images_per_partition=9, num_ids=18)
    assert benchmark.cues == [name for name in public.IN9_PARTITIONS for _ in range(9)]
    assert benchmark.images.labels.tolist() == list(range(9)) * 3
    assert benchmark.imagenet_ids["03_class"] == (3, 13)


def test_imagenet_9_in_the_wrong_shape(imagenet_9: Path) -> None:
    with pytest.raises(UserError, match="expected 370 ImageNet ids in 9 classes"):
        public.imagenet_9(imagenet_9)
    with pytest.raises(UserError, match=r"expected 4050 images in .*original/val, found 9"):
        public.imagenet_9(imagenet_9, num_ids=18)
