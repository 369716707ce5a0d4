"""COCO and ADE20K folders of scenes, read back by the formats' own rules."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lbgen_hf.biaslab.scenes import CLASSES, NOVEL_CLASSES
from lbgen_hf.evaluation import biaslab
from lbgen_hf.evaluation.biaslab_layouts import run_lengths, write_ade20k, write_coco


def decode(counts: list[int], size: list[int]) -> np.ndarray:
    """COCO's rule: runs of zeros and ones in turn, down the columns."""
    pixels = np.concatenate([np.full(count, i % 2) for i, count in enumerate(counts)])
    return pixels.reshape(size, order="F").astype(bool)


@pytest.mark.parametrize("first", [0, 1])
def test_run_lengths(first: int) -> None:
    mask = np.random.default_rng(0).random((5, 7)) < 0.5
    mask[0, 0] = first
    counts = run_lengths(mask)
    assert sum(counts) == mask.size
    assert np.array_equal(decode(counts, [5, 7]), mask)
    assert run_lengths(np.zeros((2, 2), bool)) == [4]


def test_coco(tmp_path: Path) -> None:
    content = json.loads(write_coco(tmp_path, "val", 2 * len(CLASSES)).read_text())
    assert [category["name"] for category in content["categories"]] == CLASSES
    assert content["info"]["world"] == biaslab.world()
    for record, annotation in zip(content["images"], content["annotations"], strict=True):
        assert annotation["image_id"] == record["id"]
        assert Image.open(tmp_path / "val2017" / record["file_name"]).size == (record["width"], record["height"])
        mask = decode(annotation["segmentation"]["counts"], annotation["segmentation"]["size"])
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width, y + height) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert annotation["area"] == mask.sum() > 50


def test_ade20k(tmp_path: Path) -> None:
    write_ade20k(tmp_path, "train", 8, classes=NOVEL_CLASSES)
    images = sorted((tmp_path / "images" / "training").iterdir())
    annotations = sorted((tmp_path / "annotations" / "training").iterdir())
    assert [path.name for path in images] == [path.name for path in annotations]
    for i, path in enumerate(annotations):
        assert set(np.unique(np.array(Image.open(path)))) == {i % len(NOVEL_CLASSES) + 1, len(NOVEL_CLASSES) + 1}
    lines = (tmp_path / "objectInfo150.txt").read_text().splitlines()
    assert len(lines) == 1 + len(NOVEL_CLASSES) + 1


def test_splits_differ(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_coco(tmp_path, split, 1)
    first, second = (tmp_path / f"{split}2017" / f"{0:012d}.png" for split in ("train", "val"))
    assert first.read_bytes() != second.read_bytes()
