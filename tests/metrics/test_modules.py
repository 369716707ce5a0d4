"""The `evaluate` modules: loaded by path without a network, and equal to the functions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lbgen_hf.metrics

ROOT = Path(lbgen_hf.metrics.__file__).parent
CASES = {
    "texture_inclination": {"predictions": [0, 1, 1, 2], "references": [0, 0, 1, 1], "textures": [1, 1, 0, 0]},
    "context_bias": {
        "predictions": [0, 1, 0, 1, 1, 1, 0, 0],
        "references": [0, 1, 0, 1, 1, 1, 1, 0],
        "num_uncommon": [0, 0, 1, 1, 2, 2, 3, 3],
    },
    "background_gap": {
        "predictions": [0, 1, 0, 0],
        "references": [0, 1, 0, 1],
        "partitions": ["mixed_same", "mixed_same", "mixed_rand", "mixed_rand"],
    },
}
PROGRAM = """
import json, socket, sys

def refuse(*args, **kwargs):
    raise OSError("the network is blocked")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse

import evaluate

cases = json.loads(sys.stdin.read())
print(json.dumps({path: evaluate.load(path).compute(**case, n_resamples=50) for path, case in cases.items()}))
"""


def test_modules_load_by_path_with_the_network_blocked(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps({str(ROOT / name): case for name, case in CASES.items()}),
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout.splitlines()[-1])
    for name, case in CASES.items():
        expected = getattr(lbgen_hf.metrics, name)(**case, n_resamples=50)
        assert results[str(ROOT / name)] == json.loads(json.dumps(expected))


@pytest.mark.parametrize("name", CASES)
def test_a_module_can_be_published(name: str) -> None:
    """`evaluate` asks that the script is named as its folder; a Space needs front matter and an app."""
    folder = ROOT / name
    assert {path.name for path in folder.glob("*.*")} >= {f"{name}.py", "README.md", "app.py", "requirements.txt"}
    front_matter = (folder / "README.md").read_text(encoding="utf-8").split("---")[1]
    assert "sdk: gradio" in front_matter
    assert "- metric" in front_matter


@pytest.mark.parametrize("name", CASES)
def test_a_name_is_a_function(name: str) -> None:
    assert callable(getattr(lbgen_hf.metrics, name))
