"""A backbone as train_backbone.py --push_to_hub publishes it, loaded back as its card says."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from loopback import Hub
from PIL import Image

from lbgen_hf.errors import UserError
from lbgen_hf.evaluation.pretraining import Pretraining
from lbgen_hf.evaluation.pretraining_config import PretrainingConfig

BACKBONE = "ada/backbone"
FILES = {"README.md", "config.json", "model.safetensors", "metrics.jsonl"}


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Two steps on 20 images of two classes; the Hub's cache is the test's own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for i in range(20):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    small = {"model": "test_resnet", "image_size": 32, "train_batch_size": 8, "held_out_fraction": 0.2}
    small |= {"num_train_epochs": 1, "warmup_epochs": 0, "ema_decay": 0.0, "num_workers": 0}
    return {**small, "data": str(tmp_path / "images"), "output_dir": tmp_path / "backbone", "push_to_hub": True}


def test_it_is_published_with_its_card_and_loads_in_timm(hub: Hub, options: dict) -> None:
    row = Pretraining(PretrainingConfig(**options)).train()
    assert set(hub.repos["models", BACKBONE].files) == FILES

    card = ModelCard.load(BACKBONE)
    (result,) = card.data.eval_results
    assert card.data.model_name == BACKBONE
    assert (result.metric_type, result.metric_value) == ("accuracy", round(row["held_out_accuracy"], 2))
    assert f'timm.create_model("hf-hub:{BACKBONE}", pretrained=True)' in card.text

    from_hub = timm.create_model(f"hf-hub:{BACKBONE}", pretrained=True)
    local = timm.create_model(f"local-dir:{options['output_dir']}", pretrained=True)
    assert from_hub.pretrained_cfg["label_names"] == ["a", "b"]
    for name, value in local.state_dict().items():
        assert torch.equal(from_hub.state_dict()[name], value), name


def test_a_hub_that_refuses_is_found_before_training(hub: Hub, options: dict) -> None:
    with pytest.raises(UserError, match="cannot write to eve/backbone on the Hub"):
        Pretraining(PretrainingConfig(**options, hub_model_id="eve/backbone")).train()
    assert not list(options["output_dir"].glob("checkpoint-*"))


def test_a_failed_upload_is_made_up_for_by_resuming(hub: Hub, options: dict) -> None:
    hub.fail("/commit/", 403)
    with pytest.raises(UserError, match=r"cannot upload .*; its files are kept"):
        Pretraining(PretrainingConfig(**options)).train()
    assert not hub.repos["models", BACKBONE].files
    kept = (options["output_dir"] / "model.safetensors").read_bytes()
    Pretraining(PretrainingConfig(**options, resume_from_checkpoint="latest")).train()
    assert hub.repos["models", BACKBONE].files["model.safetensors"] == kept
