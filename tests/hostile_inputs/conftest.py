"""What hostile inputs are thrown at: places, and a machine without a network."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "training"), str(ROOT / "tests" / "synthesis")]

from places import make_places  # noqa: E402


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the names that the tables give in braces. What a refused input changes below "root" is a failure."""
    return make_places(tmp_path_factory.mktemp("hostile") / "root")


@pytest.fixture(scope="session")
def pipe(sd_folder: Path):
    """A tiny pipeline with the classes of `tiny.CLASS_LABELS`."""
    from lbgen_hf import LbGenPipeline

    return LbGenPipeline.from_pretrained(sd_folder)


@pytest.fixture(autouse=True)
def machine(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, no network, an empty cache."""
    import huggingface_hub.constants

    monkeypatch.chdir(places["cwd"])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
