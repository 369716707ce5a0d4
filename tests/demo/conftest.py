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

from lbgen_hf.synthesis.generate import generate  # noqa: E402


@pytest.fixture(scope="session")
def studio(sd_folder: Path, lora_folder: Path, clip_dir: Path) -> Studio:
    return Studio(str(sd_folder), lora=str(lora_folder), clip=clip_dir, device="cpu")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures of 12 classes in 6 shards. Read-only."""
    folder = tmp_path_factory.mktemp("datasets") / "pictures"
    generate(folder, make_settings(), StandIn(), batch_size=20)
    return folder


@pytest.fixture(scope="session")
def url(studio: Studio, dataset: Path) -> Iterator[str]:
    """The address of the page."""
    page = build(studio, [dataset])
    _, address, _ = page.launch(**LAUNCH, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield address
    page.close()
