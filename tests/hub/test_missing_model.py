"""What is said of models that the Hub does not give."""

import pytest
from loopback import Hub, Repo

from lbgen_hf.errors import UserError
from lbgen_hf.pipeline_lbgen import LbGenPipeline
from lbgen_hf.rewards.clip_features import ClipFeatures


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def refusal(source: str) -> str:
    with pytest.raises(UserError) as error:
        LbGenPipeline.from_pretrained(source)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_repo_that_does_not_exist(hub: Hub) -> None:
    assert "no model 'ada/nothing'" in refusal("ada/nothing")


def test_a_repo_that_this_token_may_not_read(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["models", "ada/secret"] = Repo(private=True, files={"model_index.json": b"{}"})
    monkeypatch.delenv("HF_TOKEN")
    assert "no model 'ada/secret'" in refusal("ada/secret")


def test_a_repo_that_holds_no_model(hub: Hub) -> None:
    hub.repos["models", "ada/notes"] = Repo(private=False, files={"README.md": b"notes"})
    assert "'ada/notes'" in refusal("ada/notes")


def test_a_lora_whose_base_does_not_exist(hub: Hub) -> None:
    card = b"---\nbase_model: ada/gone\n---\n"
    files = {"README.md": card, "pytorch_lora_weights.safetensors": b"never read"}
    hub.repos["models", "ada/lora"] = Repo(private=False, files=files)
    assert "no model 'ada/gone'" in refusal("ada/lora")


def test_a_clip_that_does_not_exist_or_is_none(hub: Hub) -> None:
    hub.repos["models", "ada/notes"] = Repo(private=False, files={"README.md": b"notes"})
    for repo in ("ada/nothing", "ada/notes"):
        with pytest.raises(UserError, match=f"no CLIP model '{repo}': .* the Hub does not give it") as error:
            ClipFeatures.from_pretrained(f"hf-hub:{repo}")
        assert "\n" not in str(error.value)
