"""The paper's alignment and the total loss, on a CLIP that is a linear map."""

import pytest
import torch
from torch import nn

from lbgen_hf.fine_tuning.alignment import PaperAlignment, TotalLoss
from lbgen_hf.fine_tuning.config import LbGenConfig
from lbgen_hf.rewards.losses import discriminator_loss, entire_dataset_loss, individual_loss, quality_loss


class FakeClip:
    """Image features are a linear map of the mean colour; counts its calls."""

    def __init__(self):
        generator = torch.Generator().manual_seed(5)
        self.map = torch.randn(3, 6, generator=generator, dtype=torch.float64)
        self.calls = 0

    def image_features(self, images):
        self.calls += 1
        return nn.functional.normalize(images.mean((2, 3)).double() @ self.map, dim=-1)

    def text_features(self, texts):
        rows = [
            torch.randn(6, generator=torch.Generator().manual_seed(len(text) * 31 + ord(text[0]))) for text in texts
        ]
        return nn.functional.normalize(torch.stack(rows), dim=-1)


def score(images):
    return 1 + 4 * images.mean((1, 2, 3)).sigmoid()


def total_loss(clip, quality_weight=0.1, **options) -> TotalLoss:
    torch.manual_seed(0)
    alignment = PaperAlignment(clip, ["crane", "fish", "ring"], LbGenConfig(quality_weight=1.0, **options))
    return TotalLoss(clip, alignment, score, quality_weight)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(6)
    return torch.rand(4, 3, 8, 8, generator=generator).requires_grad_()


CLASS_IDS = torch.tensor([0, 1, 2, 1])
WEIGHTS = {"entire_weight": 1.0, "individual_weight": 1.0, "quality_weight": 0.1}


def test_total_is_equation_8(images):
    clip = FakeClip()
    loss = total_loss(clip)
    total, terms, features = loss(images, CLASS_IDS)
    assert clip.calls == 1
    descriptions = clip.text_features(["photo of crane", "photo of fish", "photo of ring"])[CLASS_IDS]
    torch.testing.assert_close(terms["entire"], entire_dataset_loss(loss.alignment.discriminator(features)))
    torch.testing.assert_close(terms["individual"], individual_loss(features, descriptions))
    torch.testing.assert_close(terms["quality"], quality_loss(score(images)))
    torch.testing.assert_close(total, terms["entire"] + terms["individual"] + 0.1 * terms["quality"])


@pytest.mark.parametrize("dropped", WEIGHTS)
def test_dropping_one_loss_changes_the_total_by_exactly_that_one(images, dropped):
    name = dropped.removesuffix("_weight")
    total, terms, _ = total_loss(FakeClip())(images, CLASS_IDS)
    rest, rest_terms, _ = total_loss(FakeClip(), **{dropped: 0.0})(images, CLASS_IDS)
    torch.testing.assert_close(total - rest, WEIGHTS[dropped] * terms[name])
    assert set(rest_terms) == set(terms) - {name}


@pytest.mark.parametrize("kept", WEIGHTS)
def test_each_loss_alone_has_a_gradient(images, kept):
    weights = {name: float(name == kept) for name in WEIGHTS}
    total_loss(FakeClip(), **weights)(images, CLASS_IDS)[0].backward()
    assert images.grad.abs().max() > 1e-6


def test_a_weight_of_zero_runs_nothing(images):
    clip = FakeClip()
    loss = total_loss(clip, entire_weight=0.0, individual_weight=0.0)
    assert loss(images, CLASS_IDS)[2] is None
    assert clip.calls == 0
    loss = total_loss(clip, quality_weight=0.0)
    loss.scorer = None  # not at hand
    loss(images, CLASS_IDS)
    assert clip.calls == 1


REAL_IDS = torch.tensor([1, 2, 0, 0])


def discriminator_gradient(**options) -> tuple[PaperAlignment, torch.Tensor]:
    """The first update's gradient, and the alignment after it."""
    alignment = total_loss(FakeClip(), **options).alignment
    features = nn.functional.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)), dim=-1)
    alignment.update(features, CLASS_IDS, REAL_IDS, torch.Generator().manual_seed(2))
    return alignment, torch.cat([p.grad.flatten() for p in alignment.discriminator.parameters()])


def test_the_discriminator_learns_equation_5():
    alignment, gradient = discriminator_gradient(discriminator_max_grad_norm=1e9)
    fresh = total_loss(FakeClip()).alignment
    features = nn.functional.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)), dim=-1)
    loss = discriminator_loss(fresh.discriminator(fresh.name_features[REAL_IDS]), fresh.discriminator(features))
    expected = torch.autograd.grad(loss, list(fresh.discriminator.parameters()))
    torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in expected]))
    moved = [a - b for a, b in zip(alignment.discriminator.parameters(), fresh.discriminator.parameters(), strict=True)]
    assert max(m.abs().max().item() for m in moved) == pytest.approx(LbGenConfig().discriminator_learning_rate, rel=0.1)


def test_the_discriminator_is_clipped():
    _, gradient = discriminator_gradient(discriminator_max_grad_norm=1e-3)
    assert gradient.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_first_classes_are_the_first_of_the_list():
    """The authors' "random" names: always those at the head of the list, as many as images."""
    alignment = total_loss(FakeClip(), real_classes="first").alignment
    shown = []
    alignment.discriminator.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    alignment.update(alignment.name_features[:2].clone(), CLASS_IDS[:2], REAL_IDS[:2], torch.Generator())
    names = {tuple(row.tolist()) for row in shown[0]}
    assert names == {tuple(row.tolist()) for row in alignment.name_features[:2]}


def test_an_alignment_without_l_en_trains_no_discriminator():
    alignment = total_loss(FakeClip(), entire_weight=0.0).alignment
    assert alignment.update(alignment.name_features, CLASS_IDS[:3], REAL_IDS[:3], torch.Generator()) == {}


def test_the_state_is_all_there_is():
    alignment, _ = discriminator_gradient()
    copy = total_loss(FakeClip()).alignment
    copy.load_state({name: value.clone() for name, value in alignment.state().items()})
    for one in (alignment, copy):
        one.update(one.name_features, CLASS_IDS[:3], REAL_IDS[:3], torch.Generator().manual_seed(3))
    assert all(torch.equal(alignment.state()[name], value) for name, value in copy.state().items())
