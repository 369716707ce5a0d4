"""pyiqa's no-reference metrics (clipiqa, musiq, topiq_nr, ...) as scorers: `pyiqa:<metric>`."""

from typing import Any

import torch
from torch import Tensor

from lbgen_hf.errors import UserError
from lbgen_hf.rewards.quality.optional_pyiqa import llama_kept, require_pyiqa
from lbgen_hf.rewards.quality.scorer import QualityScorer

REPO = "chaofengc/IQA-PyTorch-Weights"  # where pyiqa loads weights from
_PROBE_SIZE = 224


def parse_range(text: str | None) -> tuple[float, float]:
    """pyiqa's "0, 1" or "~0, ~100" to numbers.

    Raises:
        UserError: the range is not known, or has no end.
    """
    try:
        low, high = (float(part.strip().lstrip("~")) for part in (text or "").split(","))
    except ValueError:
        raise UserError(f"the metric's range is {text!r}, so its score cannot be mapped to [1, 5]") from None
    return low, high


class PyiqaScorer(QualityScorer):
    """A metric mapped to [1, 5] by its own range and direction.

    Where the range is approximate, a value beyond it counts as its end; the gradient is as if it were not.

    Args:
        metric: what `pyiqa.create_metric` returns.

    Raises:
        UserError: it needs a reference image, has no finite range, or no gradient.
    """

    def __init__(self, metric: Any) -> None:
        super().__init__()
        if metric.metric_mode != "NR":
            raise UserError(f"{metric.metric_name} compares with a reference image, and generated images have none")
        self.name = metric.metric_name
        self.lower_better = metric.lower_better
        self.low, self.high = parse_range(metric.score_range)
        self.net = metric.net  # called without the wrapper, which switches gradients and refuses values beyond [0, 1]
        self._require_gradient()

    @classmethod
    def from_name(cls, name: str) -> "PyiqaScorer":
        """Make a metric by its name; its weights are downloaded where they are not cached.

        Raises:
            UserError: pyiqa is missing, or knows no such metric.
        """
        require_pyiqa(f"pyiqa:{name}")
        with llama_kept():
            import pyiqa  # pyright: ignore[reportMissingImports]

            if name not in pyiqa.list_models(metric_mode="NR"):
                raise UserError(f"pyiqa has no metric {name!r} without reference; clipiqa, musiq, topiq_nr are three")
            return cls(pyiqa.create_metric(name, device="cpu"))

    def _require_gradient(self) -> None:
        noise = torch.rand(1, 3, _PROBE_SIZE, _PROBE_SIZE, generator=torch.Generator().manual_seed(0)).requires_grad_()
        try:
            (slope,) = torch.autograd.grad(self._score(noise).sum(), noise)
        except RuntimeError as error:
            raise UserError(f"{self.name} has no gradient, so it gives no reward: {error}") from None
        if not slope.isfinite().all() or not slope.any():
            raise UserError(f"the gradient of {self.name} is zero or not finite, so it gives no reward")

    def _score(self, images: Tensor) -> Tensor:
        raw = self.net(images).reshape(len(images))
        share = (raw - self.low) / (self.high - self.low)
        share = 1 - share if self.lower_better else share
        return 1 + 4 * (share + (share.clamp(0, 1) - share).detach())
