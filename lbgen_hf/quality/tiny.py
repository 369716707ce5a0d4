"""lbgen-tiny's scorer: a small convolutional network with five level logits, for 64x64 biaslab pictures."""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lbgen_hf.errors import UserError
from lbgen_hf.quality.scorer import LEVELS, QualityScorer, expected_level

WEIGHTS = "model.safetensors"


def _conv(wide_in: int, wide_out: int, stride: int = 1) -> nn.Conv2d:
    """Scaled so that, without norms, the signal keeps its size."""
    conv = nn.Conv2d(wide_in, wide_out, 3, stride=stride, padding=1)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    nn.init.zeros_(conv.bias)
    return conv


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width)
        self.second = _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * self.second(F.silu(self.first(F.silu(x))))


class TinyScorer(QualityScorer):
    """Squares of 2x2 pixels, strided convolutions and residual blocks down to 1/8, a mean over places, five logits.

    No norms: contrast is part of what it judges. Smooth activations: its gradient is a reward.
    """

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.PixelUnshuffle(2), _conv(12, 32), nn.SiLU(), _conv(32, 64, 2), nn.SiLU(), _conv(64, 88, 2)]
        self.features = nn.Sequential(*layers, _Residual(88), _Residual(88), nn.SiLU())
        self.head = nn.Sequential(nn.Linear(88, 88), nn.SiLU(), nn.Linear(88, len(LEVELS)))

    def logits(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to level logits (B, 5), bad to excellent."""
        return self.head(self.features(images.to(self.head[0].weight.dtype) * 2 - 1).mean((2, 3)))

    def _score(self, images: Tensor) -> Tensor:
        return expected_level(self.logits(images))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write the weights in half precision."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({k: v.half().contiguous() for k, v in self.state_dict().items()}, Path(folder) / WEIGHTS)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> "TinyScorer":
        """Read weights that `save_pretrained` wrote, as float32.

        Raises:
            UserError: the folder has none.
        """
        path = Path(folder) / WEIGHTS
        if not path.exists():
            raise UserError(f"no quality scorer at {path}; training/biaslab/train_quality.py makes it")
        scorer = cls()
        scorer.load_state_dict({k: v.to(torch.float32) for k, v in load_file(path).items()})
        return scorer
