"""The model cards: front matter, licences, limits, and usage that runs, word for word, against a loopback Hub."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import DatasetCard, ModelCard

from lbgen_hf.biaslab import MODELS
from lbgen_hf.pipeline_lbgen import LORA_FILE

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "tests" / "hub"), str(ROOT / "tests" / "synthesis")]
CARDS = ROOT / "model_cards"


def code_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_card_of_lbgen_tiny_is_whole() -> None:
    check_whole(ModelCard.load(CARDS / "lbgen-tiny.md", ignore_metadata_errors=False), "apache-2.0")


def check_whole(card: ModelCard, licence: str) -> None:
    assert card.data.license == licence
    assert "lbgen" in card.data.tags
    for heading in ("## Use", "## Bias", "## Limits", "## Licen"):
        assert heading in card.text
    assert "mean two things" in card.text
    assert "ine-grained classes" in card.text


def sd15_lora_card(folder: Path) -> Path:
    """The card that training writes for Stable Diffusion 1.5, with the paper's settings."""
    from lbgen_hf import load_class_names
    from lbgen_hf.fine_tuning.card import write_card
    from lbgen_hf.fine_tuning.config import LbGenConfig

    config = LbGenConfig.from_yaml(ROOT / "training" / "configs" / "paper.yaml")
    names = load_class_names("imagenet-1k").names
    write_card(folder, config, names, rows=[], step=94, num_processes=8, repo_id="user/lbgen-sd15-lora")
    return folder / "README.md"


@pytest.mark.parametrize("licence", ["creativeml-openrail-m", None])
def test_the_lora_card_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, licence: str | None) -> None:
    monkeypatch.setattr("lbgen_hf.fine_tuning.card.license_of", lambda *_: licence)
    check_whole(ModelCard.load(sd15_lora_card(tmp_path), ignore_metadata_errors=False), licence or "other")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sd_folder: Path, lora_folder: Path):
    """A Hub with the repos that the cards name, in small: random Stable Diffusion, a LoRA under its card, a dataset."""
    from loopback import Hub, Repo
    from stand_in import StandIn, make_settings

    from lbgen_hf import pipeline_lbgen
    from lbgen_hf.synthesis.card import write_card
    from lbgen_hf.synthesis.folder import DatasetFolder
    from lbgen_hf.synthesis.generate import generate

    def files_of(folder: Path) -> dict[str, bytes]:
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    generate(tmp_path / "dataset", make_settings(), StandIn(), batch_size=20)
    write_card(DatasetFolder(tmp_path / "dataset"), "user/lbgen-imagenet", "creativeml-openrail-m")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.chdir(tmp_path)
    with Hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        urls = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", urls)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.endpoint)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.endpoint)
        base = {**files_of(sd_folder)}
        hub.repos["models", "stable-diffusion-v1-5/stable-diffusion-v1-5"] = Repo(False, base)
        lora = {
            **files_of(lora_folder),
            "README.md": sd15_lora_card(tmp_path).read_bytes(),
            "pipeline.py": Path(pipeline_lbgen.__file__).read_bytes(),
        }
        hub.repos["models", "user/lbgen-sd15-lora"] = Repo(False, lora)
        hub.repos["datasets", "user/lbgen-imagenet"] = Repo(False, files_of(tmp_path / "dataset"))
        yield hub


@pytest.mark.parametrize("number", range(3))
def test_usage_of_the_lora_runs(hub, tmp_path: Path, number: int) -> None:
    names: dict = {}
    exec(code_blocks(tmp_path / "README.md", "python")[number], names)
    assert names["pipe"].get_active_adapters()


def test_the_card_of_a_dataset_is_whole_and_its_usage_runs(hub, tmp_path: Path, monkeypatch) -> None:
    from stand_in import StandIn

    path = tmp_path / "dataset" / "README.md"
    card = DatasetCard.load(path, ignore_metadata_errors=False)
    assert card.data.license == "creativeml-openrail-m"
    assert card.data.size_categories == ["n<1K"]
    assert "names with two meanings" in card.text

    monkeypatch.setattr("lbgen_hf.synthesis.sample.load_sampler", lambda *_, **__: StandIn())
    names: dict = {}
    for block in code_blocks(path, "python"):
        exec(block, names)
    np.testing.assert_array_equal(names["image"], names["dataset"][0]["image"])


@pytest.mark.skipif(not (MODELS / "lora" / LORA_FILE).is_file(), reason="this checkout ships no LoRA")
def test_usage_of_lbgen_tiny_runs() -> None:
    names: dict = {}
    for block in code_blocks(CARDS / "lbgen-tiny.md", "python"):
        exec(block, names)
    assert names["low_bias"].class_names == ["star", "star", "fish", "fish"]
    assert names["low_bias"].seeds == names["output"].seeds
