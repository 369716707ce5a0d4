"""A random tiny stack to train on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lbgen_hf.fine_tuning.config import LbGenConfig
from lbgen_hf.pipeline_lbgen import LbGenPipeline


@pytest.fixture(scope="session")
def lively_folder(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random pipeline with a decoder so strong that its images differ, so that rewards have something to move."""
    folder = tmp_path_factory.mktemp("lively")
    pipe = LbGenPipeline.from_pretrained(str(sd_folder))
    with torch.no_grad():
        for name, weight in pipe.vae.decoder.named_parameters():
            weight.mul_(3 if name.endswith("weight") else 1)
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def make_config(lively_folder: Path, clip_dir: Path, tmp_path: Path) -> Callable[..., LbGenConfig]:
    """A small run: four steps of two images, in `tmp_path / "out"`; keyword arguments override."""

    def make(**options: Any) -> LbGenConfig:
        small = {
            "pretrained_model_name_or_path": str(lively_folder),
            "clip_model": str(clip_dir),
            "quality_weight": 0.0,
            "output_dir": tmp_path / "out",
            "num_inference_steps": 4,
            "num_gradient_steps": 2,
            "lora_rank": 2,
            "lora_alpha": 3.0,
            "learning_rate": 1e-2,
            "discriminator_learning_rate": 1e-2,
            "train_batch_size": 2,
            "max_train_steps": 4,
            "checkpointing_steps": 1,
            "validation_steps": 2,
            "validation_images_per_class": 2,
            "report_to": "none",
        }
        return LbGenConfig(**small | options)

    return make
