"""A loopback Hub, and a small finished dataset to publish on it."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.hf_api
import numpy as np
import pytest
from loopback import TOKEN, Hub

from lbgen_hf.synthesis.generate import generate
from lbgen_hf.synthesis.plan import Settings
from lbgen_hf.synthesis.sample import Samples


def _sample_noise(rows: list) -> Samples:
    images = [np.random.default_rng(row.seed).integers(0, 256, (16, 16, 3), np.uint8) for row in rows]
    return Samples(np.stack(images), [True] * len(rows))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The Hub of this process for the length of a test, without Xet's protocol and the client's patience."""
    with Hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        files = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the client would have slept between its tries."""
    slept: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", slept.append)
    return slept


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """40 images of 4 classes in 4 shards."""
    out = tmp_path / "lbgen-noise"
    settings = Settings("noise", "0", tuple("abcd"), images_per_class=10, shard_size=10, format="png")
    generate(out, settings, _sample_noise)
    return out
