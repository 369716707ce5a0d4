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


def test_the_base_model_and_all_loras_generate_from_the_same_noise_and_are_measured(
    tmp_path: Path, monkeypatch, capsys
):
    models = models_with(tmp_path, "judge", "pipeline")
    for name in ("lora", "lora_context_swap"):
        (models / name).mkdir()
        unet = UNet2DConditionModel.from_pretrained(MODELS / "pipeline", subfolder="unet")
        save_lora(models / name, unet, "lbgen-tiny")
    monkeypatch.setattr(shipped, "MODELS", models)
    run(tmp_path / "out")
    options = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    sets = [load_dataset(str(tmp_path / name), **options) for name in ("out", "out-base", "out-context-swap")]
    assert sets[0]["seed"][:] == sets[1]["seed"][:] == sets[2]["seed"][:]
    assert len({images[0]["image"].tobytes() for images in sets}) == 3
    printed = capsys.readouterr().out
    assert "| metric | base | lbGen | context swap |" in printed
    assert "| mi marked background |" in printed


def test_the_folder_that_one_is_in_is_known_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    (tmp_path / "in-base").write_text("")  # so that it is refused before anything is generated
    for out, message in ((".", "in-base"), ("/", "nothing can be written beside /")):
        with pytest.raises(SystemExit) as end:
            main(["quickstart", "--out", out])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
