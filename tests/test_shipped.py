"""What the name "lbgen-tiny" stands for, wherever it is asked for."""

import ast
from pathlib import Path

import pytest
import torch

import lbgen_hf
from lbgen_hf import shipped
from lbgen_hf.biaslab import MODELS
from lbgen_hf.pipeline_lbgen import LbGenPipeline
from lbgen_hf.rewards.clip_features import ClipFeatures
from lbgen_hf.rewards.quality.loading import load_quality_scorer
from lbgen_hf.shipped import LBGEN_TINY, PARTS, Companions, companions_of, resolve


def test_the_name_is_the_folder_of_each_part():
    for part in PARTS:
        assert resolve(LBGEN_TINY, part) == str(MODELS / part)
        assert resolve("ada/model", part) == "ada/model"
        assert resolve(Path("a") / "folder", part) == str(Path("a") / "folder")


def test_every_other_model_has_the_papers_companions():
    assert companions_of("ada/model") == Companions("ViT-L-14", "qalign")
    assert not companions_of("ada/model").loras
    assert not companions_of("ada/model").shipped


def test_the_shipped_companions_follow_the_folders_that_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "MODELS", tmp_path)
    bare = companions_of(LBGEN_TINY)
    assert (bare.clip_model, bare.quality_scorer, bare.lora, bare.loras) == (LBGEN_TINY, LBGEN_TINY, None, {})
    for name in ("lora", "lora_context_swap"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pytorch_lora_weights.safetensors").touch()
    assert companions_of(LBGEN_TINY).lora == LBGEN_TINY
    loras = companions_of(LBGEN_TINY).loras
    assert list(loras) == ["lbGen", "context swap"]
    assert [resolve(lora, "lora") for lora in loras.values()] == [
        str(tmp_path / "lora"),
        str(tmp_path / "lora_context_swap"),
    ]


@pytest.mark.skipif(companions_of(LBGEN_TINY).lora is None, reason="this checkout ships no LoRA")
def test_the_companions_load_by_the_name():
    companions = companions_of(LBGEN_TINY)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    named = ClipFeatures.from_pretrained(companions.clip_model)
    assert torch.equal(
        named.image_features(images), ClipFeatures.from_pretrained(MODELS / "clip").image_features(images)
    )
    assert load_quality_scorer(companions.quality_scorer)(images).shape == (2,)
    pipe = LbGenPipeline.from_pretrained(LBGEN_TINY)
    pipe.load_lora_weights(companions.lora)
    assert pipe.get_active_adapters()


def test_biaslab_imports_nothing_above_it():
    """Of lbgen_hf only errors, checks and files, at whatever depth the import stands."""
    allowed = {"lbgen_hf.errors", "lbgen_hf.checks", "lbgen_hf.files"}
    for path in (Path(lbgen_hf.__file__).parent / "biaslab").glob("*.py"):
        imported = {
            node.module
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lbgen_hf")
        }
        strangers = {name for name in imported if not name.startswith("lbgen_hf.biaslab")} - allowed
        assert not strangers, f"{path.name} imports {strangers}"
