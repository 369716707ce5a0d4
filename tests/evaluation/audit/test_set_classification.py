"""Telling datasets apart: each transformation leaves what it says, and the null is chance."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from worlds import as_dataset, encode, measure

from lbgen_hf.evaluation.audit import set_classification
from lbgen_hf.evaluation.audit.collecting import Sample
from lbgen_hf.evaluation.audit.set_classification import TRANSFORMATIONS, classify_sets, square_images

GENERATOR = torch.Generator().manual_seed(0)


def noise_set(seed: int, *, brighter: int = 0, grating: bool = False, num: int = 240, **options) -> Sample:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(60, 140, (num, 32, 32, 3)) + brighter
    if grating:
        pixels += (40 * (np.arange(32) % 2))[None, None, :, None] - 20
    contents = [encode(image.astype(np.uint8), **options) for image in pixels]
    return measure(as_dataset(contents, [i % 2 for i in range(num)], ["a", "b"]))


@pytest.fixture(scope="module")
def plain() -> Sample:
    return noise_set(0)


def test_shuffles_keep_the_pixels_and_change_their_order() -> None:
    images = torch.rand(3, 3, 32, 32, generator=GENERATOR)
    for name in ("pixel shuffle", "patch shuffle"):
        shuffled = TRANSFORMATIONS[name](images, GENERATOR)
        assert not torch.equal(shuffled, images)
        assert torch.equal(shuffled.flatten(1).sort(1).values, images.flatten(1).sort(1).values)
    # Unfolding a shuffled image gives the same patches: only their order is new.
    patches, moved = (F.unfold(part, 8, stride=8).sum(1).sort(-1).values for part in (images, shuffled))
    assert torch.allclose(patches, moved, atol=1e-4)


def test_passes_split_the_spectrum() -> None:
    x = torch.arange(32) / 32
    slow, fast = torch.cos(2 * torch.pi * 3 * x), torch.cos(2 * torch.pi * 9 * x)
    images = (slow + fast).expand(1, 3, 32, 32)
    low, high = (TRANSFORMATIONS[name](images, GENERATOR) for name in ("low pass", "high pass"))
    assert torch.allclose(low, slow.expand_as(low), atol=1e-5)
    assert torch.allclose(high, fast.expand_as(high), atol=1e-5)


def test_mean_colour_and_edges() -> None:
    images = torch.zeros(1, 3, 32, 32)
    images[:, 0, :, 16:] = 1
    assert torch.allclose(TRANSFORMATIONS["mean colour"](images, GENERATOR)[0, :, 5, 5], torch.tensor([0.5, 0, 0]))
    columns = TRANSFORMATIONS["edges"](images, GENERATOR)[0, 0].sum(0).nonzero().flatten()
    assert columns.tolist() == [15, 16]


def test_images_are_of_one_size_and_format_whatever_they_were() -> None:
    other = noise_set(0, file_format="BMP", num=20)
    assert torch.equal(square_images(other, 5, 0), square_images(noise_set(0, num=20), 5, 0))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of the seven transformations, for speed."""
    kept = {name: TRANSFORMATIONS[name] for name in ("mean colour", "low pass", "high pass")}
    monkeypatch.setattr(set_classification, "TRANSFORMATIONS", kept)


@pytest.mark.usefixtures("few")
def test_a_brighter_set_is_told_by_its_colour_and_halves_are_not_told(plain: Sample) -> None:
    told = {result.transformation: result for result in classify_sets([plain, noise_set(1, brighter=30)])}
    assert told["mean colour"].accuracy > 0.95
    assert told["low pass"].is_told
    assert not told["high pass"].is_told
    for result in told.values():
        assert result.null_accuracy == pytest.approx(0.5, abs=0.24)  # 72 test images: four standard errors
        assert (result.num_test, result.chance) == (72, 0.5)


@pytest.mark.usefixtures("few")
def test_a_grating_is_told_by_the_high_frequencies_alone(plain: Sample) -> None:
    told = {result.transformation: result for result in classify_sets([plain, noise_set(1, grating=True)])}
    assert told["high pass"].accuracy > 0.95
    assert not told["mean colour"].is_told


@pytest.mark.slow
def test_all_transformations_on_three_sets(plain: Sample) -> None:
    told = classify_sets([plain, noise_set(1, brighter=30), noise_set(2, brighter=-30)])
    assert [result.transformation for result in told] == list(TRANSFORMATIONS)
    assert all(result.chance == pytest.approx(1 / 3) for result in told)
