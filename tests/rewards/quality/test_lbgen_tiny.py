"""The shipped scorer on scenes it never saw: it ranks known degradations, and prefers no context."""

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from lbgen_hf.biaslab.degradations import DEGRADATIONS, level_of, pixelation
from lbgen_hf.biaslab.scenes import Scenes, render, sample_scenes
from lbgen_hf.rewards.quality import QualityScorer, load_quality_scorer

HELD_OUT_STRENGTHS = torch.tensor([0.0, 0.125, 0.375, 0.625, 0.875])


@pytest.fixture(scope="module")
def scorer() -> QualityScorer:
    return load_quality_scorer("lbgen-tiny")


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return sample_scenes(600, seed=910_001)


@pytest.fixture(scope="module")
def images(scenes: Scenes) -> Tensor:
    return render(scenes).images


def score_all(scorer: QualityScorer, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([scorer(batch) for batch in images.split(100)])


def test_ranks_degradations_at_strengths_between_those_it_was_trained_on(scorer: QualityScorer, images: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    strengths = HELD_OUT_STRENGTHS.repeat(24)
    scores = [score_all(scorer, degrade(images[:120], strengths, generator)) for degrade in DEGRADATIONS]
    levels = level_of(strengths).repeat(len(DEGRADATIONS))
    assert spearmanr(torch.cat(scores), levels).statistic >= 0.9


def test_scores_a_kind_of_degradation_it_never_saw_below_clean_images(scorer: QualityScorer, images: Tensor) -> None:
    """It ranks its strengths less well: textures repeat in cells of 8 pixels, so that coarse blocks look like some."""
    strengths = HELD_OUT_STRENGTHS.repeat(24)
    scores = score_all(scorer, pixelation(images[:120], strengths, torch.Generator().manual_seed(0)))
    assert spearmanr(scores, level_of(strengths)).statistic >= 0.4
    means = torch.stack([scores[strengths == strength].mean() for strength in HELD_OUT_STRENGTHS])
    assert (means[1:] < means[0] - 0.4).all()


@pytest.mark.parametrize("attribute", ["backgrounds", "textures", "places"])
def test_prefers_no_context(scorer: QualityScorer, scenes: Scenes, images: Tensor, attribute: str) -> None:
    scores = score_all(scorer, images)
    values = getattr(scenes, attribute)
    means = torch.stack([scores[values == value].mean() for value in values.unique()])
    assert means.max() - means.min() <= 0.15


@pytest.mark.parametrize("degrade", DEGRADATIONS, ids=lambda function: function.__name__)
def test_its_gradient_leads_back_to_the_clean_image(scorer: QualityScorer, images: Tensor, degrade) -> None:
    degraded = degrade(images[:50], torch.full((50,), 0.5), torch.Generator().manual_seed(0)).requires_grad_()
    (slope,) = torch.autograd.grad(scorer(degraded).sum(), degraded)
    assert F.cosine_similarity(slope.flatten(1), (images[:50] - degraded).flatten(1)).mean() > 0
