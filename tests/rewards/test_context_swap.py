"""Context-swap alignment against closed forms, in float64 on random inputs."""

import math

import pytest
import torch
import torch.nn.functional as F

from lbgen_hf.rewards.context_swap import (
    ConditionalDiscriminator,
    class_loss,
    gradient_penalty,
    image_directions,
    swap_class,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(random(*shape, seed=seed), dim=-1)


@pytest.fixture
def discriminator() -> ConditionalDiscriminator:
    torch.manual_seed(0)
    return ConditionalDiscriminator(6, 3, hidden_dim=5).double()


def test_the_discriminator_by_hand(discriminator):
    features, class_ids = unit(4, 6), torch.tensor([2, 0, 1, 2])
    discriminator.standardise(unit(9, 6, seed=1) + 3)  # a cone, far from the origin
    first, _, second, _ = discriminator.layers

    def leaky(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    for feature, class_id, logit in zip(features, class_ids, discriminator(features, class_ids), strict=True):
        hidden = leaky(first.weight @ ((feature - discriminator.mean) / discriminator.scale) + first.bias)
        hidden = leaky(second.weight @ hidden + second.bias)
        expected = (discriminator.output.weight[0] + discriminator.embedding.weight[class_id]) @ hidden
        torch.testing.assert_close(logit, expected + discriminator.output.bias[0])


def test_inputs_are_centred_and_scaled(discriminator):
    features = unit(50, 6, seed=1) + 3
    discriminator.standardise(features)
    seen = (features - discriminator.mean) / discriminator.scale
    torch.testing.assert_close(seen.mean(0), torch.zeros(6, dtype=torch.float64))
    assert seen.square().mean().item() == pytest.approx(1)
    assert ConditionalDiscriminator(16, 2).scale.item() == pytest.approx(1 / 4)  # unit features: the root of the width


def test_a_swap_by_hand():
    features, directions = unit(3, 6), random(4, 6, seed=1)
    from_ids, to_ids = torch.tensor([0, 1, 2]), torch.tensor([3, 1, 0])
    swapped = swap_class(features, directions, from_ids, to_ids, 0.6)
    for feature, before, after, result in zip(features, from_ids, to_ids, swapped, strict=True):
        moved = [f + 0.6 * (a - b) for f, a, b in zip(feature, directions[after], directions[before], strict=True)]
        norm = math.sqrt(math.fsum(x * x for x in moved))
        torch.testing.assert_close(result, torch.stack(moved) / norm)
    torch.testing.assert_close(swapped[1], features[1])  # to its own class: itself


def test_a_constant_gap_between_texts_and_images_does_not_matter():
    features, directions, gap = unit(3, 6), random(4, 6, seed=1), random(6, seed=2)
    ids = torch.tensor([0, 1, 2]), torch.tensor([3, 1, 0])
    torch.testing.assert_close(
        swap_class(features, directions + gap, *ids, 0.6), swap_class(features, directions, *ids, 0.6)
    )


def test_image_directions_are_the_ridge_regression():
    texts, images = unit(4, 6), unit(40, 6, seed=1) + 2
    class_ids = torch.arange(40) % 4
    mean = texts[class_ids].mean(0)
    x, y = texts[class_ids] - mean, images - images.mean(0)
    ridge = (x.T @ x).diagonal().mean()
    # The same problem as ordinary least squares with rows of regularisation.
    rows = torch.cat([x, ridge.sqrt() * torch.eye(6, dtype=torch.float64)])
    weights = torch.linalg.lstsq(rows, torch.cat([y, torch.zeros(6, 6, dtype=torch.float64)])).solution
    torch.testing.assert_close(image_directions(texts, images, class_ids), (texts - mean) @ weights)


def test_image_directions_point_from_class_mean_to_class_mean():
    """Where images are a rotation of the texts beyond a gap, and noise, differences of texts point elsewhere."""
    texts = unit(8, 16)
    rotation, _ = torch.linalg.qr(random(16, 16, seed=1))
    class_ids = torch.arange(400) % 8
    images = F.normalize(texts[class_ids] @ rotation + 2 * unit(1, 16, seed=2) + 0.1 * random(400, 16, seed=3), dim=-1)
    means = torch.stack([images[class_ids == c].mean(0) for c in range(8)])
    directions = image_directions(texts, images, class_ids)
    wanted = means[1:] - means[:1]
    assert F.cosine_similarity(directions[1:] - directions[:1], wanted).min() > 0.9
    assert F.cosine_similarity(texts[1:] - texts[:1], wanted).max() < 0.8


def test_class_loss_by_hand():
    images, texts, class_ids = unit(3, 6), unit(4, 6, seed=1), torch.tensor([1, 3, 0])
    terms = []
    for image, class_id in zip(images, class_ids, strict=True):
        logits = [10 * float(image @ text) for text in texts]
        terms.append(math.log(math.fsum(map(math.exp, logits))) - logits[class_id])
    assert class_loss(images, texts, class_ids).item() == pytest.approx(sum(terms) / 3, abs=1e-12)
    assert class_loss(images, texts, class_ids, scale=0.0).item() == pytest.approx(math.log(4))


def test_the_penalty_by_finite_differences(discriminator):
    features, class_ids = unit(3, 6), torch.tensor([0, 2, 1])
    squares, step = torch.zeros(3, dtype=torch.float64), 1e-6
    for i in range(6):
        nudge = step * torch.eye(6, dtype=torch.float64)[i]
        difference = discriminator(features + nudge, class_ids) - discriminator(features - nudge, class_ids)
        squares += (difference / (2 * step)).detach().square()
    penalty = gradient_penalty(discriminator, features, class_ids)
    assert penalty.item() == pytest.approx(squares.mean().item(), rel=1e-6)
    penalty.backward()
    assert discriminator.embedding.weight.grad.abs().max() > 0
