"""Classifiers on frozen features: L-BFGS logistic regression and k nearest neighbours.

The regression minimises scikit-learn's loss,

    C * sum_i CE(W f_i + b, y_i) + |W|^2 / 2,

with the bias free, on features of unit length. One grid of C serves every backbone and dataset.

Features of a network are strongly correlated, which makes L-BFGS slow. So W is written in the principal axes of the
features, each in units of the inverse root of its curvature, var_d * mean(p (1 - p)) + 1 / (C n): the same loss, nearly
round. Along the grid each fit starts from the two before it, extrapolated in log C.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lbgen_hf.checks import check_finite
from lbgen_hf.errors import UserError

C_GRID = tuple(float(c) for c in 10 ** np.arange(-2, 5.01, 0.5))
MAX_ITERATIONS = 1000
NUM_NEIGHBOURS = 20
# A fit stops where a Newton step would gain about this share of the loss, and of what was gained over no features.
_TOLERANCE = 1e-5
_LEAST_CURVATURE = 1e-7
_TEMPERATURE = 0.07  # of the neighbours' votes


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """A fitted regression: weight (K, D) and bias (K,), float32."""

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
        probe: the regression of this C, on the training images.
        at_edge: it is the first or the last of the grid, so that a better one may lie beyond.
        curve: (C, validation accuracy in %) of the grid.
    """

    c: float
    probe: LinearProbe
    at_edge: bool
    curve: tuple[tuple[float, float], ...]


def fit_linear(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    c: float,
    *,
    start: LinearProbe | None = None,
    max_iterations: int = MAX_ITERATIONS,
) -> LinearProbe:
    """Fit one regression, as `fit_grid`."""
    (probe,) = fit_grid(features, labels, num_classes, (c,), start=start, max_iterations=max_iterations)
    return probe


def fit_grid(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    grid: Sequence[float],
    *,
    start: LinearProbe | None = None,
    max_iterations: int = MAX_ITERATIONS,
) -> Iterator[LinearProbe]:
    """Fit one regression for each C.

    Args:
        features: (n, D); their lengths do not matter.
        labels: (n,) class ids.
        num_classes: K.
        grid: of C, rising; the fits are fastest where the steps are equal in log C.
        start: where the first fit starts, such as a regression of fewer images; default: one that knows nothing.
        max_iterations: of each fit; each is about one pass over the images, an epoch, whatever their number.

    Raises:
        UserError: a feature is not finite.
    """
    check_finite("the features", features)
    regression = _Regression(features, labels, num_classes)
    before = last = regression.zeros() if start is None else regression.parameters(start)
    for c in grid:
        before, last = last, regression.fit(c, 2 * last - before, max_iterations)
        yield regression.probe(last)


class _ConvergedError(Exception):
    """Ends torch's L-BFGS, whose own tolerances are absolute; no error, and never seen outside."""


class _Regression:
    """The loss in the principal axes of centred features; the bias absorbs the mean.

    Parameters are (K, R + 1): the weights along the R axes, and the bias.
    """

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        features = _unit(features)
        self.mean = features.mean(0)
        self.axes, self.variances = _principal_axes(features - self.mean)
        self.points = (features - self.mean) @ self.axes
        self.one_hot = F.one_hot(labels, num_classes).T.to(self.points, memory_format=torch.contiguous_format)

    def zeros(self) -> Tensor:
        """Parameters that know nothing."""
        return self.points.new_zeros(len(self.one_hot), self.points.shape[1] + 1)

    def fit(self, c: float, start: Tensor, max_iterations: int) -> Tensor:
        """Minimise the loss."""
        decay = 1 / (c * len(self.points))
        units = self._curvatures(F.softmax(self._logits(start), 0), decay).rsqrt()
        scaled = (start / units).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [scaled],
            max_iter=max_iterations,
            max_eval=2 * max_iterations,
            tolerance_grad=0,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        of_nothing = math.log(len(self.one_hot))

        def loss() -> Tensor:
            value, gradient, curvatures = self._loss(scaled.detach() * units, decay)
            scaled.grad = gradient * units
            gain = (gradient.square() / curvatures).sum() / 2
            if gain <= _TOLERANCE * min(value, of_nothing - value):
                raise _ConvergedError
            return value

        with contextlib.suppress(_ConvergedError):
            optimizer.step(loss)
        return scaled.detach() * units

    def _logits(self, parameters: Tensor) -> Tensor:
        """(K, n): this way round the products with the points are the fastest."""
        return torch.addmm(parameters[:, -1:], parameters[:, :-1], self.points.T)

    def _curvatures(self, p: Tensor, decay: float) -> Tensor:
        """About the loss's second derivatives (R + 1,), from the probabilities (K, n)."""
        of_logits = (p - p.square()).mean().clamp_min(_LEAST_CURVATURE)
        return torch.cat([self.variances * of_logits + decay, of_logits[None]])

    def _loss(self, parameters: Tensor, decay: float) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss, its gradient in closed form (no graph of the logits is kept), and its curvatures."""
        n, weight = len(self.points), parameters[:, :-1]
        log_p = F.log_softmax(self._logits(parameters), 0)
        value = decay / 2 * _dot(weight, weight) - _dot(log_p, self.one_hot) / n
        residual = log_p.exp_()
        curvatures = self._curvatures(residual, decay)
        residual -= self.one_hot
        gradient = torch.cat([residual @ self.points / n + decay * weight, residual.mean(1, keepdim=True)], 1)
        return value, gradient, curvatures

    def parameters(self, probe: LinearProbe) -> Tensor:
        """The regression along the axes: the inverse of `probe`, where they span its weights."""
        bias = probe.bias + probe.weight @ self.mean
        return torch.cat([probe.weight @ self.axes, bias[:, None]], 1)

    def probe(self, parameters: Tensor) -> LinearProbe:
        """The regression on features."""
        weight = parameters[:, :-1] @ self.axes.T
        return LinearProbe(weight, parameters[:, -1] - weight @ self.mean)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a.flatten().dot(b.flatten())


def _principal_axes(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal axes (D, min(n, D)) that span features (n, D) of mean zero, and the variances along them."""
    n, width = centred.shape
    if n < width:
        _, deviations, axes = torch.linalg.svd(centred, full_matrices=False)
        return axes.T, deviations.square() / n
    variances, axes = torch.linalg.eigh(centred.T @ centred / n)
    return axes, variances.clamp_min(0)


def select_c(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    num_classes: int,
    *,
    grid: tuple[float, ...] = C_GRID,
    max_iterations: int = MAX_ITERATIONS,
) -> Selection:
    """Choose C by the accuracy on validation images (features, labels)."""
    curve: list[tuple[float, float]] = []
    best: tuple[float, float, LinearProbe] | None = None  # accuracy, C, regression
    for c, probe in zip(grid, fit_grid(*train, num_classes, grid, max_iterations=max_iterations), strict=True):
        accuracy = 100 * (probe.predict(val[0]) == val[1]).double().mean().item()
        curve.append((c, accuracy))
        if best is None or accuracy > best[0]:
            best = accuracy, c, probe
    if best is None:
        raise ValueError("the grid is empty")
    _, c, probe = best
    return Selection(c, probe, c in (grid[0], grid[-1]), tuple(curve))


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
    known, labels = _unit(train[0]), train[1]
    if not len(known):
        raise UserError("nearest neighbours need training images")
    predictions = []
    for batch in _unit(features).split(1024):
        similarity, index = (batch @ known.T).topk(min(k, len(known)), dim=1)
        votes = batch.new_zeros(len(batch), num_classes)
        votes.scatter_add_(1, labels[index], ((similarity - 1) / _TEMPERATURE).exp())
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=1)
