"""lbgen-tiny's scorer: a small convolutional network with five level logits, for 64x64 biaslab images."""

import os
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lbgen_hf.errors import UserError
from lbgen_hf.rewards.quality.scorer import LEVELS, QualityScorer, expected_level

WEIGHTS = "model.safetensors"


def _convolve(wide_in: int, wide_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A smooth activation, since the gradient is a reward; a norm over the batch, which keeps an image's contrast."""
    conv = nn.Conv2d(wide_in, wide_out, kernel, stride=stride, padding=(kernel - 1) // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(wide_out), nn.SiLU())


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolve = nn.Sequential(_convolve(width, width), _convolve(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolve(x)


class TinyScorer(QualityScorer):
    """Strided convolutions down to 1/8, a residual block, a mean over places, five logits."""

    def __init__(self) -> None:
        super().__init__()
        layers = [_convolve(3, 24, 6, 2), _convolve(24, 48, 4, 2), _convolve(48, 64, 4, 2)]
        self.features = nn.Sequential(*layers, _Residual(64))
        self.head = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, len(LEVELS)))

    def logits(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to level logits (B, 5), bad to excellent."""
        return self.head(self.features(images.to(next(self.parameters()).dtype) * 2 - 1).mean((2, 3)))

    def _score(self, images: Tensor) -> Tensor:
        return expected_level(self.logits(images))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write the weights in half precision."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        weights = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_file(weights, Path(folder) / WEIGHTS)

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
        scorer.load_state_dict(load_file(path))
        return scorer
