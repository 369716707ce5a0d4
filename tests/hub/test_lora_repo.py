"""A LoRA as train_lbgen.py --push_to_hub publishes it, loaded back the three ways that its card promises."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import ModelCard
from loopback import READ_TOKEN, Hub, Repo

from lbgen_hf.errors import UserError
from lbgen_hf.fine_tuning.card import PUBLISHED, create_repo, license_of, write_card
from lbgen_hf.fine_tuning.config import LbGenConfig
from lbgen_hf.fine_tuning.lora import add_lora, save_lora
from lbgen_hf.fine_tuning.trainer import LbGenTrainer
from lbgen_hf.hub import create_model_repo, upload_model
from lbgen_hf.pipeline_lbgen import LbGenPipeline

BASE, LORA = "ada/base", "ada/lora"
STEPS = 4


@pytest.fixture
def base_on_hub(hub: Hub, sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    files = {p.relative_to(sd_folder).as_posix(): p.read_bytes() for p in sd_folder.rglob("*") if p.is_file()}
    hub.repos["models", BASE] = Repo(private=False, files=files)


@pytest.fixture
def published(base_on_hub: None, sd_folder: Path, tmp_path: Path) -> np.ndarray:
    """Publish a LoRA of the base on the Hub; returns what the LoRA generates for "goldfish" from seed 0."""
    pipe = LbGenPipeline.from_pretrained(str(sd_folder))
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    for parameter in add_lora(pipe.unet, rank=2, alpha=3):
        torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path / "lora"
    folder.mkdir()
    save_lora(pipe.unet, folder)
    config = LbGenConfig(pretrained_model_name_or_path=BASE, output_dir=folder, push_to_hub=True, hub_model_id=LORA)
    assert create_repo(config) == LORA
    write_card(folder, config, pipe.class_labels, rows=[], step=1, repo_id=LORA)
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "state.pt").write_bytes(b"optimizer")
    upload_model(folder, LORA, PUBLISHED)
    return sample(pipe)


def sample(pipe) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    call = {"generator": generator, "num_inference_steps": STEPS, "guidance_scale": 2.0, "output_type": "np"}
    return pipe(prompt="goldfish", **call).images


def test_only_the_lora_its_card_and_its_pipeline_are_uploaded(hub: Hub, published: np.ndarray) -> None:
    lora, *beside = "pytorch_lora_weights.safetensors", "README.md", "lbgen_config.yaml", "pipeline.py"
    assert set(hub.repos["models", LORA].files) == {lora, *beside}


def test_the_card_that_is_uploaded(hub: Hub, published: np.ndarray) -> None:
    card = ModelCard(hub.repos["models", LORA].files["README.md"].decode())
    assert (card.data.base_model, card.data.model_name) == (BASE, None)
    assert f'LbGenPipeline.from_pretrained("{LORA}")' in card.text


def test_a_hub_that_refuses_is_found_before_training(base_on_hub: None, tmp_path: Path) -> None:
    config = LbGenConfig(
        pretrained_model_name_or_path=BASE, output_dir=tmp_path, push_to_hub=True, hub_model_id="no/t/ok"
    )
    with pytest.raises(UserError, match="cannot write to no/t/ok on the Hub"):
        LbGenTrainer(config).train()


def test_a_token_that_may_only_read_is_found_before_training(
    hub: Hub, published: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    config = LbGenConfig(pretrained_model_name_or_path=BASE, output_dir=tmp_path, push_to_hub=True, hub_model_id=LORA)
    with pytest.raises(UserError, match="cannot write to ada/lora on the Hub"):
        create_repo(config)


def test_a_hub_that_is_lost_is_one_line(unreachable: None) -> None:
    with pytest.raises(UserError, match="cannot write to ada/lora on the Hub"):
        create_model_repo(LORA)
    assert license_of(BASE) is None


def test_an_upload_that_is_lost_is_one_line(hub: Hub, pauses: list[float], tmp_path: Path) -> None:
    hub.repos["models", LORA] = Repo(private=False)
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    for request in ("preupload", "^PUT /lfs/"):
        hub.drop(request, times=50)
        with pytest.raises(UserError, match=r"cannot upload .* to ada/lora; its files are kept"):
            upload_model(tmp_path, LORA, ["a.safetensors"])
        hub._faults.clear()


def test_lbgen_pipeline_loads_it_with_its_base(published: np.ndarray) -> None:
    pipe = LbGenPipeline.from_pretrained(LORA)
    np.testing.assert_allclose(sample(pipe), published, atol=1e-5)
    assert pipe("goldfish", num_inference_steps=2).class_names == ["goldfish"]


def test_plain_diffusers_loads_it(published: np.ndarray) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(BASE)
    without = sample(pipe)
    pipe.load_lora_weights(LORA)
    np.testing.assert_allclose(sample(pipe), published, atol=1e-5)
    assert abs(without - published).max() > 1e-2


def test_its_own_pipeline_runs_without_lbgen_hf(hub: Hub, published: np.ndarray, tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["lbgen_hf"] = None  # not installed
import numpy as np, torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({BASE!r}, custom_pipeline={LORA!r}, trust_remote_code=True)
assert type(pipe).__name__ == "LbGenPipeline", type(pipe)
pipe.load_lora_weights({LORA!r})
output = pipe(
    "goldfish", generator=torch.Generator().manual_seed(0), num_inference_steps={STEPS}, output_type="np"
)
assert output.class_ids == [1]
np.save("sampled.npy", output.images)
"""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": "",
    }
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "sampled.npy"), published, atol=1e-5)
