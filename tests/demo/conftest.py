"""The demo with tiny random models, served on this machine."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the demo needs lbgen_hf[demo]")

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "demo"), str(ROOT / "tests" / "hub"), str(ROOT / "tests" / "synthesis")]

from app import LAUNCH, build  # noqa: E402
from stand_in import StandIn, make_settings  # noqa: E402
from studio import Studio  # noqa: E402
from tiny import make_components, save_lora  # noqa: E402

from lbgen_hf.synthesis.generate import generate  # noqa: E402


@pytest.fixture(scope="session")
def second_lora(tmp_path_factory: pytest.TempPathFactory, sd_folder: Path) -> Path:
    """Another LoRA for `sd_folder`. Read-only."""
    folder = tmp_path_factory.mktemp("loras") / "other.v2"
    folder.mkdir()
    save_lora(folder, make_components(seed=1)["unet"], str(sd_folder))
    return folder


@pytest.fixture(scope="session")
def studio(sd_folder: Path, lora_folder: Path, second_lora: Path, clip_dir: Path) -> Studio:
    return Studio(str(sd_folder), [str(lora_folder), str(second_lora)], clip=clip_dir, device="cpu")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of 12 classes in 6 shards. Read-only."""
    folder = tmp_path_factory.mktemp("datasets") / "images"
    generate(folder, make_settings(), StandIn(), batch_size=20)
    return folder


@pytest.fixture(scope="session")
def url(studio: Studio, dataset: Path) -> Iterator[str]:
    """The address of the page."""
    page = build(studio, [dataset])
    _, address, _ = page.launch(**LAUNCH, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield address
    page.close()
