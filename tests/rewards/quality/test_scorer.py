"""The protocol, scorers by name, and lbgen-tiny's architecture."""

import importlib.util

import pytest
import torch

from lbgen_hf.errors import UserError
from lbgen_hf.rewards.quality import load_quality_scorer
from lbgen_hf.rewards.quality.scorer import check_images, expected_level
from lbgen_hf.rewards.quality.tiny import TinyScorer


@pytest.fixture(scope="module")
def scorer() -> TinyScorer:
    torch.manual_seed(0)
    return TinyScorer().freeze()


def test_expected_level_is_the_mean_of_one_to_five() -> None:
    certain = torch.eye(5) * 1e4
    torch.testing.assert_close(expected_level(certain), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    torch.testing.assert_close(expected_level(torch.zeros(2, 5)), torch.tensor([3.0, 3.0]))
    two = torch.tensor([0.0, 0.0, -1e4, -1e4, torch.tensor(3.0).log()])
    torch.testing.assert_close(expected_level(two), torch.tensor((1 + 2 + 3 * 5) / 5))
    assert expected_level(torch.zeros(1, 5, dtype=torch.float16)).dtype == torch.float32


def test_a_batch_of_four_is_four_of_one(scorer: TinyScorer) -> None:
    images = torch.rand(4, 3, 64, 64)
    torch.testing.assert_close(scorer(images), torch.cat([scorer(image[None]) for image in images]))


def test_gradient_matches_finite_differences(scorer: TinyScorer) -> None:
    precise = TinyScorer().double().freeze()
    precise.load_state_dict(scorer.state_dict())
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(precise(images).sum(), images)
    for channel, row, column in [(0, 0, 0), (1, 31, 17), (2, 63, 63)]:
        step = torch.zeros_like(images)
        step[0, channel, row, column] = 1e-5
        difference = (precise(images + step) - precise(images - step)) / 2e-5
        torch.testing.assert_close(difference[0], slope[0, channel, row, column], rtol=1e-4, atol=1e-10)


def test_values_outside_the_range_keep_their_gradient_and_weights_are_frozen(scorer: TinyScorer) -> None:
    images = (torch.rand(2, 3, 64, 64) * 3 - 1).requires_grad_()
    scores = scorer(images)
    scores.sum().backward()
    assert ((scores >= 1) & (scores <= 5)).all()
    outside = (images < 0) | (images > 1)
    assert (images.grad[outside] != 0).float().mean() > 0.99
    assert all(weight.grad is None and not weight.requires_grad for weight in scorer.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_any_dtype(scorer: TinyScorer, dtype: torch.dtype) -> None:
    images = torch.rand(2, 3, 64, 64).to(dtype).requires_grad_()
    scores = scorer(images)
    scores.sum().backward()
    assert images.grad.dtype == dtype
    torch.testing.assert_close(scores, scorer(images.detach().float()), atol=1e-5, rtol=1e-5)


def test_sizes_other_than_its_own(scorer: TinyScorer) -> None:
    assert scorer(torch.rand(1, 3, 32, 47)).shape == (1,)


def test_weights_are_stored_in_half_precision_and_small(scorer: TinyScorer, tmp_path) -> None:
    scorer.save_pretrained(tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size <= 800_000
    again = TinyScorer.from_pretrained(tmp_path).freeze()
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(again(images), scorer(images), atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 64, 64), r"shape \(B, 3, H, W\)"),
        (torch.zeros(2, 1, 64, 64), r"shape \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 31, 64), "at least 32x32"),
        (torch.full((1, 3, 64, 64), torch.nan), "not finite"),
        (torch.full((1, 3, 64, 64), torch.inf), "not finite"),
    ],
)
def test_bad_images_are_refused(images: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_images(images)


@pytest.mark.parametrize("name", ["q-align", "vlm:", "vlm", "pyiqa", "qalign:x", "lbgen-tiny:x", ""])
def test_unknown_scorers_are_refused_with_the_list(name: str) -> None:
    with pytest.raises(UserError, match=r"choose from lbgen-tiny, qalign, vlm:<repo>, pyiqa:<metric>"):
        load_quality_scorer(name)


@pytest.mark.parametrize("name", ["qalign", "pyiqa:musiq"])
def test_a_missing_extra_is_named_with_its_pip_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == "pyiqa" else find(module))
    with pytest.raises(UserError, match=r"pip install 'lbgen_hf\[qalign\]'"):
        load_quality_scorer(name)


def test_options_that_a_scorer_does_not_have_are_refused() -> None:
    with pytest.raises(UserError, match="bits and gradient checkpointing are for"):
        load_quality_scorer("lbgen-tiny", bits=8)
    with pytest.raises(UserError, match="bits must be 8 or 4"):
        load_quality_scorer("vlm:nowhere", bits=3)


def test_weights_that_cannot_be_loaded_are_one_line(tmp_path) -> None:
    with pytest.raises(UserError, match="the scorer vlm:"):
        load_quality_scorer(f"vlm:{tmp_path}")


def test_weights_are_not_waited_for_where_the_hub_cannot_be_reached(unreachable) -> None:
    with pytest.raises(UserError, match=r"no weights of the scorer vlm:nobody/nothing .* the Hub cannot be reached"):
        load_quality_scorer("vlm:nobody/nothing")
