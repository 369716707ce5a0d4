"""`lbgen quickstart` with the shipped model, an image a class."""

from pathlib import Path

import pytest
from datasets import load_dataset
from diffusers import UNet2DConditionModel
from tiny import save_lora

from lbgen_hf import quickstart, shipped
from lbgen_hf.biaslab import MODELS
from lbgen_hf.biaslab.scenes import CLASSES
from lbgen_hf.cli import main


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quickstart, "IMAGES_PER_CLASS", 1)


def models_with(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).symlink_to(MODELS / name)
    return folder


def run(out: Path) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["quickstart", "--out", str(out)])
    assert not exit_info.value.code


def test_without_a_lora_the_base_model_generates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(shipped, "MODELS", models_with(tmp_path, "judge", "pipeline"))
    run(tmp_path / "out")
    dataset = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset["label"][:] == list(range(16))
    assert dataset.features["label"].names == CLASSES
    assert (tmp_path / "out" / "contact_sheet.jpg").exists()
    assert "load_dataset" in capsys.readouterr().out


def test_with_a_lora_both_generate_from_the_same_noise_and_are_measured(tmp_path: Path, monkeypatch, capsys):
    models = models_with(tmp_path, "judge", "pipeline")
    (models / "lora").mkdir()
    save_lora(
        models / "lora", UNet2DConditionModel.from_pretrained(MODELS / "pipeline", subfolder="unet"), "lbgen-tiny"
    )
    monkeypatch.setattr(shipped, "MODELS", models)
    run(tmp_path / "out")
    options = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    tuned, base = (load_dataset(str(tmp_path / name), **options) for name in ("out", "out-base"))
    assert tuned["seed"][:] == base["seed"][:]
    assert tuned[0]["image"].tobytes() != base[0]["image"].tobytes()
    printed = capsys.readouterr().out
    assert "| metric | base | lbGen | change |" in printed
    assert "| mi background |" in printed
