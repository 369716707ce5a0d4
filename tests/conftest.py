"""Tiny models with random weights, each made once a session: a Stable Diffusion folder, a LoRA for it, a CLIP."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import CLASS_LABELS, CLASS_WNIDS, make_components, save_lora

CLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"size": 32, "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
}


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of random weights with the classes `CLASS_LABELS`. Read-only."""
    from lbgen_hf.pipeline_lbgen import LbGenPipeline

    folder = tmp_path_factory.mktemp("sd")
    LbGenPipeline(**make_components(), class_labels=CLASS_LABELS, class_wnids=CLASS_WNIDS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lora_folder(tmp_path_factory: pytest.TempPathFactory, sd_folder: Path) -> Path:
    """A LoRA for `sd_folder`, which its card names as its base. Read-only."""
    folder = tmp_path_factory.mktemp("lora")
    save_lora(folder, make_components()["unet"], str(sd_folder))
    return folder


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip model of random weights: `local-dir:{clip_dir}` loads it. Read-only."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    model = open_clip.CLIP(**json.loads(json.dumps(CLIP_CONFIG["model_cfg"])))
    (folder / "open_clip_config.json").write_text(json.dumps(CLIP_CONFIG))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that refuses connections; any pause before another try is an error."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: pytest.fail("the client tries again"))
