"""The LoRA's card: its metadata, its example, and the config that trains the LoRA again."""

import os
import shlex
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from lbgen_hf.biaslab import MODELS
from lbgen_hf.fine_tuning.card import CONFIG_FILE, license_of, write_card
from lbgen_hf.fine_tuning.config import LbGenConfig, parse_config

ROWS = [
    {"step": 0, "alignment": 0.2, "class_accuracy": 0.5},
    {"step": 10, "alignment": 0.25, "class_accuracy": 0.75},
    {"step": 20, "alignment": 0.9, "class_accuracy": 0.1},
]


@pytest.fixture
def card(tmp_path: Path):
    def write(rows=ROWS, **options) -> ModelCard:
        config = LbGenConfig(**options)
        write_card(tmp_path, config, ["star", "fish"], rows=rows, step=10, num_processes=2, repo_id="ada/lora")
        return ModelCard.load(tmp_path / "README.md", ignore_metadata_errors=False)

    return write


def command_of(card: ModelCard) -> list[str]:
    """The arguments of the card's training command."""
    block = card.text.split("```bash\n")[1].split("```")[0]
    return shlex.split(block)[shlex.split(block).index("training/train_lbgen.py") + 1 :]


def test_metadata(card):
    data = card(class_names="biaslab").data
    assert (data.base_model, data.license, data.library_name) == ("lbgen-tiny", "apache-2.0", "diffusers")
    assert {"lora", "lbgen"} <= set(data.tags)
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results == {"alignment": 0.25, "class_accuracy": 0.75}
    assert data.eval_results[0].dataset_name == "images of 2 classes, validation noise of seed 0"


def test_text(card):
    text = card().text
    assert 'LbGenPipeline.from_pretrained("ada/lora")' in text
    assert "comes inside lbgen_hf and is on no Hub" in text
    assert "| 10 | 0.25 | 0.75 |" in text
    assert "| 20 |" not in text
    assert "--num_processes 2 " in text
    assert "class_accuracy" not in card(rows=[]).text
    assert "context-swap" not in text
    assert "context-swap" in card(alignment="context_swap").text


def test_a_base_model_of_a_hostile_name_stays_a_string(card, tmp_path):
    (tmp_path / "a: {b}").mkdir()
    base = str(tmp_path / "a: {b}")
    assert card(pretrained_model_name_or_path=base).data.base_model == base


def test_a_folder_and_a_class_list_whose_names_are_no_text(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    config = LbGenConfig(class_names=str(folder / "classes.txt"))
    write_card(folder, config, ["star", "fish"], rows=ROWS, step=10)
    assert "caf" in (folder / "README.md").read_text(encoding="utf-8")
    assert LbGenConfig.from_yaml(folder / CONFIG_FILE) == config


def test_the_licence_is_the_base_models(tmp_path):
    assert license_of("lbgen-tiny") == "apache-2.0"
    assert license_of(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
    assert license_of(str(tmp_path)) == "creativeml-openrail-m"
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")  # found out when the run is over
    assert license_of(str(tmp_path)) is None


def test_the_card_trains_the_lora_again(card, tmp_path, monkeypatch):
    options = {"seed": 5, "lora_rank": 3, "lora_alpha": 1.5, "early_exit": True, "learning_rate": 1.5e-3}
    command = command_of(card(**options))
    monkeypatch.chdir(tmp_path)
    assert parse_config(command).to_dict() == LbGenConfig(**options).to_dict()


@pytest.mark.parametrize("name", ["lora", "lora_context_swap"])
def test_a_shipped_lora_has_such_a_card(name, monkeypatch):
    card = ModelCard.load(MODELS / name / "README.md", ignore_metadata_errors=False)
    assert (card.data.base_model, card.data.license) == ("lbgen-tiny", "apache-2.0")
    monkeypatch.chdir(MODELS / name)
    config = parse_config(command_of(card))
    assert config.to_dict() == yaml.safe_load(Path(CONFIG_FILE).read_text(encoding="utf-8"))
    listed = [line for line in card.text.splitlines() if line.startswith("- `")]
    assert listed == [f"- `{setting}`: {value}" for setting, value in config.differences().items()]
