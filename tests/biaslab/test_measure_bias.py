"""training/measure_bias.py keeps the images it sampled, and uses them again only after the same recipe."""

from pathlib import Path

import pytest
import torch


def test_images_are_sampled_again_only_for_another_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "training")
    from measure_bias import images_of

    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "base.safetensors"

    def sample() -> torch.Tensor:
        return torch.rand(3, 2, 3, 4, 4, generator=generator)

    first = images_of(path, {"seed": "1"}, sample)
    assert torch.equal(images_of(path, {"seed": "1"}, sample), first)
    assert not torch.equal(images_of(path, {"seed": "2"}, sample), first)
    assert images_of(None, {"seed": "2"}, sample).shape == first.shape
