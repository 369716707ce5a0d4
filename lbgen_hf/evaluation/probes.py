"""Classifiers on frozen features: L-BFGS logistic regression and k nearest neighbours.

The regression minimises scikit-learn's loss,

    C * sum_i CE(W f_i + b, y_i) + |W|^2 / 2,

with the bias free, on features of unit length. One grid of C serves every backbone and dataset; each C starts from the
solution of the one before it.
"""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lbgen_hf.checks import check_finite
from lbgen_hf.errors import UserError

C_GRID = tuple(float(c) for c in 10 ** np.arange(-2, 5.01, 0.5))
NUM_NEIGHBOURS = 20
_TEMPERATURE = 0.07  # of the neighbours' votes


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """A fitted regression: weight (K, D) and bias (K,), float64."""

    weight: Tensor
    bias: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """Class ids (n,) of features (n, D)."""
        return (_unit(features) @ self.weight.T + self.bias).argmax(1)


@dataclasses.dataclass(frozen=True)
class Selection:
    """How C was chosen.

    Attributes:
        c: the C with the best validation accuracy, the smallest of equals.
        at_edge: it is the first or the last of the grid, so that a better one may lie beyond.
        curve: (C, validation accuracy in %) of the grid.
    """

    c: float
    at_edge: bool
    curve: tuple[tuple[float, float], ...]


def fit_linear(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    c: float,
    *,
    start: LinearProbe | None = None,
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
) -> LinearProbe:
    """Fit one regression, in float64.

    Args:
        features: (n, D); their lengths do not matter.
        labels: (n,) class ids.
        num_classes: K.
        c: as in the module's docstring.
        start: another C's solution.
        max_iterations: each is about one pass over the images, an epoch, whatever their number.
        tolerance: stop when no entry of the gradient of the mean loss is larger.

    Raises:
        UserError: a feature is not finite.
    """
    check_finite("the features", features)
    features = _unit(features)
    n, width = features.shape
    parameters = torch.zeros(num_classes, width + 1, dtype=torch.float64, device=features.device)
    if start is not None:
        parameters.copy_(torch.cat([start.weight, start.bias[:, None]], 1))
    parameters.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=1e-12,
        history_size=10,
        line_search_fn="strong_wolfe",
    )
    decay = 1 / (2 * c * n)

    def loss() -> Tensor:
        """The mean loss, its gradient in closed form: no graph of float64 logits is kept."""
        with torch.no_grad():
            log_p = F.log_softmax(torch.addmm(parameters[:, -1], features, parameters[:, :-1].T), 1)
            value = F.nll_loss(log_p, labels) + decay * parameters[:, :-1].square().sum()
            residual = log_p.exp_()
            residual[torch.arange(n, device=labels.device), labels] -= 1
            gradient = torch.cat([residual.T @ features, residual.sum(0)[:, None]], 1) / n
            gradient[:, :-1] += 2 * decay * parameters[:, :-1]
            parameters.grad = gradient
        return value

    optimizer.step(loss)
    fitted = parameters.detach()
    return LinearProbe(fitted[:, :-1], fitted[:, -1])


def select_c(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    num_classes: int,
    *,
    grid: tuple[float, ...] = C_GRID,
    max_iterations: int = 1000,
) -> Selection:
    """Choose C by the accuracy on validation images (features, labels)."""
    curve, probe = [], None
    for c in grid:
        probe = fit_linear(*train, num_classes, c, start=probe, max_iterations=max_iterations)
        curve.append((c, 100 * (probe.predict(val[0]) == val[1]).double().mean().item()))
    best = max(accuracy for _, accuracy in curve)
    c = next(c for c, accuracy in curve if accuracy == best)
    return Selection(c, c in (grid[0], grid[-1]), tuple(curve))


def nearest_neighbours(
    train: tuple[Tensor, Tensor], features: Tensor, num_classes: int, k: int = NUM_NEIGHBOURS
) -> Tensor:
    """Class ids (n,) by the votes of the k most similar training images, weighted by exp(cosine / 0.07).

    Args:
        train: features (m, D) and labels (m,); with fewer than k images all vote.
        features: (n, D).
        num_classes: K.

    Raises:
        UserError: there are no training images.
    """
    known, labels = _unit(train[0]).float(), train[1]
    if not len(known):
        raise UserError("nearest neighbours need training images")
    predictions = []
    for batch in _unit(features).float().split(1024):
        similarity, index = (batch @ known.T).topk(min(k, len(known)), dim=1)
        votes = batch.new_zeros(len(batch), num_classes)
        votes.scatter_add_(1, labels[index], ((similarity - 1) / _TEMPERATURE).exp())
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.double(), dim=1)
