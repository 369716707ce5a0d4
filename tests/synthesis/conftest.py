"""Datasets sampled by the stand-in."""

from pathlib import Path

import pytest
from stand_in import StandIn, make_settings

from lbgen_hf.synthesis.generate import generate


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run of `make_settings()` gives. Read-only."""
    out = tmp_path_factory.mktemp("finished") / "dataset"
    generate(out, make_settings(), StandIn(), batch_size=4)
    return out
