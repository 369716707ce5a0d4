"""pyiqa's metrics, mapped to [1, 5]: with stand-ins for their networks, and one real architecture of random weights."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lbgen_hf.errors import UserError
from lbgen_hf.rewards.quality import load_quality_scorer
from lbgen_hf.rewards.quality.pyiqa_metrics import PyiqaScorer, parse_range


class Brightness(nn.Module):
    """The mean of the image, scaled: a metric whose value is known."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * images.mean((1, 2, 3))[:, None]


def make_metric(net: nn.Module, score_range: str | None = "0, 1", *, lower_better: bool = False, mode: str = "NR"):
    return SimpleNamespace(
        metric_name="stand-in", metric_mode=mode, score_range=score_range, lower_better=lower_better, net=net
    )


@pytest.mark.parametrize(("lower_better", "expected"), [(False, [1, 2, 5]), (True, [5, 4, 1])])
def test_range_and_direction_are_the_metrics_own(lower_better: bool, expected: list[float]) -> None:
    scorer = PyiqaScorer(make_metric(Brightness(100.0), "~0, ~100", lower_better=lower_better)).freeze()
    images = torch.tensor([0, 0.25, 1])[:, None, None, None].expand(-1, 3, 64, 64)
    torch.testing.assert_close(scorer(images), torch.tensor(expected, dtype=torch.float32))


def test_beyond_its_approximate_range_the_score_stays_and_the_gradient_lives() -> None:
    scorer = PyiqaScorer(make_metric(Brightness(2.0))).freeze()
    images = torch.full((1, 3, 64, 64), 0.9, requires_grad=True)
    scores = scorer(images)
    scores.sum().backward()
    assert scores.item() == pytest.approx(5)
    assert (images.grad > 0).all()


class Rounded(Brightness):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.round())


class Detached(Brightness):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).detach()


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (make_metric(Brightness(), mode="FR"), "compares with a reference"),
        (make_metric(Brightness(), None), "cannot be mapped"),
        (make_metric(Brightness(), "0, inf and more"), "cannot be mapped"),
        (make_metric(Detached()), "has no gradient"),
        (make_metric(Rounded()), "zero or not finite"),
    ],
)
def test_metrics_that_give_no_reward_are_refused(metric: SimpleNamespace, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PyiqaScorer(metric)


def test_ranges_are_read_as_pyiqa_writes_them() -> None:
    assert parse_range("~0, ~100") == (0, 100)
    assert parse_range("-1, 0") == (-1, 0)


def test_a_real_metric_has_a_gradient_and_an_unknown_one_is_refused() -> None:
    pyiqa = pytest.importorskip("pyiqa", reason="an optional extra: pip install 'lbgen_hf[qalign]'")
    torch.manual_seed(0)
    scorer = PyiqaScorer(pyiqa.create_metric("cnniqa", device="cpu", pretrained=None)).freeze()
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    scorer(images).sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.any()
    with pytest.raises(UserError, match="pyiqa has no metric 'nonsense'"):
        load_quality_scorer("pyiqa:nonsense")
