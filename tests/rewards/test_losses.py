"""The losses against their closed forms, in float64 on random inputs."""

import math

import pytest
import torch
from torch import nn

from lbgen_hf.rewards.losses import (
    Discriminator,
    discriminator_loss,
    entire_dataset_loss,
    individual_loss,
    quality_loss,
    sample_other_classes,
)


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(3 * torch.randn(7, generator=generator, dtype=torch.float64) for _ in range(2))


def test_entire_dataset_loss_is_equation_5(logits):
    real, fake = logits
    real_probability, fake_probability = real.sigmoid(), fake.sigmoid()
    expected = -(real_probability.log().mean() + (1 - fake_probability).log().mean())
    torch.testing.assert_close(discriminator_loss(real, fake), expected)
    torch.testing.assert_close(entire_dataset_loss(fake), -fake_probability.log().mean())
    torch.testing.assert_close(entire_dataset_loss(fake, saturating=True), (1 - fake_probability).log().mean())


def test_logits_far_out_stay_finite():
    far = torch.tensor([-200.0, 200.0], dtype=torch.float64)
    assert discriminator_loss(far, far).item() == pytest.approx(200)
    assert entire_dataset_loss(far).item() == pytest.approx(100)
    assert entire_dataset_loss(far, saturating=True).item() == pytest.approx(-100)


def test_individual_loss_is_the_diagonal():
    generator = torch.Generator().manual_seed(1)
    image, text = (torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    cosines = [
        math.fsum(a * b) / math.sqrt(math.fsum(a * a) * math.fsum(b * b)) for a, b in zip(image, text, strict=True)
    ]
    assert individual_loss(image, text).item() == pytest.approx(1 - sum(cosines) / 4, abs=1e-12)


def test_quality_loss_is_equation_7():
    scores = torch.tensor([1.0, 2.5, 5.0], dtype=torch.float64)
    assert quality_loss(scores).item() == pytest.approx((0.8 + 0.5 + 0) / 3)


def test_discriminator_is_linear_relu_linear():
    torch.manual_seed(0)
    discriminator = Discriminator(6).double()
    first, _, last, _ = discriminator
    features = torch.randn(3, 6, dtype=torch.float64)
    expected = [(last.weight[0] @ (first.weight @ f + first.bias).clamp(min=0) + last.bias[0]) for f in features]
    torch.testing.assert_close(discriminator(features), torch.stack(expected))
    assert isinstance(Discriminator(6, 3, nn.LeakyReLU)[1], nn.LeakyReLU)
    assert Discriminator(6, 3)[0].out_features == 3


def test_negative_class_is_never_the_own_and_uniform_over_the_others():
    num_classes, samples = 6, 60_000
    class_ids = torch.arange(num_classes).repeat(samples // num_classes)
    counts = torch.zeros(num_classes, num_classes)
    for rank in range(2):  # each rank has its own generator
        others = sample_other_classes(class_ids, num_classes, torch.Generator().manual_seed(rank))
        counts += torch.bincount(class_ids * num_classes + others, minlength=num_classes**2).view(num_classes, -1)
    assert counts.diagonal().sum() == 0
    off_diagonal = counts[~torch.eye(num_classes, dtype=torch.bool)]
    expected = 2 * samples / (num_classes * (num_classes - 1))
    chi_square = ((off_diagonal - expected) ** 2 / expected).sum()
    assert chi_square < 54  # 24 degrees of freedom, p > 0.0004
