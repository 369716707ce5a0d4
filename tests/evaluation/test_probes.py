"""The probes, against scikit-learn."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.probes import (
    C_GRID,
    LinearProbe,
    _Regression,
    fit_grid,
    fit_linear,
    nearest_neighbours,
    select_c,
)

NUM_CLASSES = 7


def overlapping(n: int, seed: int = 0, noise: float = 1.5) -> tuple[Tensor, Tensor]:
    """Features of classes that overlap, so that the best C is inside the grid."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(NUM_CLASSES, 12, generator=torch.Generator().manual_seed(100))
    labels = torch.randint(NUM_CLASSES, (n,), generator=rng)
    return centres[labels] + noise * torch.randn(n, 12, generator=rng), labels


def correlated(n: int, seed: int = 0, width: int = 40) -> tuple[Tensor, Tensor]:
    """Features with a large mean whose variances span four decades, as a network's do."""
    features, labels = overlapping(n, seed, noise=1.0)
    mix = torch.randn(12, width, generator=torch.Generator().manual_seed(101))
    mix *= 10 ** torch.linspace(0, -2, width)
    return F.relu(features @ mix) + 0.5, labels


def objective(probe: LinearProbe, features: Tensor, labels: Tensor, c: float) -> float:
    weight, bias = probe.weight.double(), probe.bias.double()
    logits = F.normalize(features.double(), dim=1) @ weight.T + bias
    return (c * F.cross_entropy(logits, labels, reduction="sum") + weight.square().sum() / 2).item()


@pytest.mark.parametrize("sample", [overlapping, correlated])
@pytest.mark.parametrize("c", [0.01, 1.0, 100.0, 10_000.0])
def test_equal_to_scikit_learns_optimum(sample: Callable, c: float) -> None:
    features, labels = sample(400)
    test_features, test_labels = sample(2000, seed=1)
    probe = fit_linear(features, labels, NUM_CLASSES, c)
    reference = LogisticRegression(C=c, tol=1e-10, max_iter=20_000)
    reference.fit(F.normalize(features.double(), dim=1).numpy(), labels.numpy())
    of_reference = LinearProbe(*(torch.from_numpy(x).float() for x in (reference.coef_, reference.intercept_)))
    assert objective(probe, features, labels, c) == pytest.approx(
        objective(of_reference, features, labels, c), rel=5e-4
    )
    accuracy, expected = (
        100 * (p.predict(test_features) == test_labels).double().mean().item() for p in (probe, of_reference)
    )
    assert abs(accuracy - expected) <= 0.2


@pytest.mark.parametrize("n", [300, 30])  # 30 are fewer than the features' 40 dimensions
def test_the_grid_ends_where_single_fits_do(n: int) -> None:
    features, labels = correlated(n)
    for c, probe in zip(C_GRID, fit_grid(features, labels, NUM_CLASSES, C_GRID), strict=True):
        single = fit_linear(features, labels, NUM_CLASSES, c)
        ours, alone = (objective(p, features, labels, c) for p in (probe, single))
        assert ours == pytest.approx(alone, rel=2e-3 if n < 40 else 1e-3), c


def test_choice_of_c() -> None:
    train, val = overlapping(200), overlapping(1000, seed=1)
    selection = select_c(train, val, NUM_CLASSES, grid=(0.01, 0.1, 1.0, 10.0, 100.0))
    accuracies = dict(selection.curve)
    assert accuracies[selection.c] == max(accuracies.values())
    assert not selection.at_edge
    assert selection.c == min(c for c, accuracy in accuracies.items() if accuracy == max(accuracies.values()))
    edge = select_c(train, val, NUM_CLASSES, grid=(selection.c, 1e3))
    assert edge.at_edge


@pytest.mark.parametrize("n", [300, 30])
def test_a_fit_from_another_ends_where_one_from_nothing_does(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = correlated(n), correlated(n // 2, seed=1)
    both = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    selection = select_c(train, val, NUM_CLASSES)
    assert selection.probe.predict(val[0]).eq(val[1]).double().mean() * 100 == dict(selection.curve)[selection.c]

    passes = []
    loss = _Regression._loss
    monkeypatch.setattr(_Regression, "_loss", lambda *args: passes.append(1) or loss(*args))
    alone = fit_linear(*both, NUM_CLASSES, selection.c)
    num_alone = len(passes)
    started = fit_linear(*both, NUM_CLASSES, selection.c, start=selection.probe)
    assert len(passes) - num_alone < num_alone
    ours, expected = (objective(p, *both, selection.c) for p in (started, alone))
    assert ours == pytest.approx(expected, rel=5e-4)


def test_the_length_of_features_does_not_matter() -> None:
    features, labels = overlapping(200)
    lengths = torch.rand(200, 1, generator=torch.Generator().manual_seed(2)) + 0.5
    a, b = (fit_linear(x, labels, NUM_CLASSES, 10.0) for x in (features, features * lengths))
    assert torch.allclose(a.weight, b.weight, atol=1e-3)


def test_neighbours_are_scikit_learns() -> None:
    train, (features, _) = overlapping(300), overlapping(200, seed=1)
    reference = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp(-distance / 0.07))
    reference.fit(train[0].numpy(), train[1].numpy())
    ours = nearest_neighbours(train, features, NUM_CLASSES)
    assert (ours.numpy() == reference.predict(features.numpy())).mean() > 0.99
    few = (train[0][:3], train[1][:3])
    assert set(nearest_neighbours(few, features, NUM_CLASSES).tolist()) <= set(few[1].tolist())


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = overlapping(20)
    features[3, 4] = float("nan")
    with pytest.raises(UserError, match="1 of 240 values are not finite"):
        fit_linear(features, labels, NUM_CLASSES, 1.0)
