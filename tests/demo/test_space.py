"""What a Space reads, and `lbgen demo`'s manners."""

import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import gradio
import pytest
from app import bias_page, find_bias
from huggingface_hub import metadata_load
from packaging.version import Version

from lbgen_hf.cli import main

ROOT = Path(__file__).parents[2]


def test_the_front_matter_is_a_spaces() -> None:
    front_matter = metadata_load(ROOT / "demo" / "README.md")
    assert front_matter["sdk"] == "gradio"
    assert front_matter["python_version"] == "3.12"
    assert (ROOT / "demo" / front_matter["app_file"]).is_file()
    assert len(front_matter["short_description"]) <= 60
    assert set(front_matter) >= {"title", "emoji", "colorFrom", "colorTo", "sdk_version", "license"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lowest = re.search(r"gradio>=([\d.]+)", " ".join(project["project"]["optional-dependencies"]["demo"]))[1]
    assert Version(lowest) <= Version(front_matter["sdk_version"]) <= Version(gradio.__version__)


def test_the_wheel_carries_the_demo() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]["demo"] == "lbgen_hf/_demo"


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--dataset", "nowhere"], "nowhere"), (["--model", "/no/such/model"], "/no/such/model")],
)
def test_what_is_missing_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["demo", *options])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("lbgen: error:")
    assert message in line


def test_the_bias_page_shows_what_measure_bias_wrote(tmp_path: Path) -> None:
    row = '{"name": "%s", "base": [1.5, 1.4, 1.6], "tuned": [0.3, 0.2, 0.4], "change": [0, 0, 0], "relative": %s}'
    rows = [row % ("mi_background", "[-0.8, -0.9, -0.7]"), row % ("class_accuracy", "[0.01, -0.02, 0.04]")]
    options = '{"images_per_class": "100", "num_inference_steps": "50", "guidance_scale": "2.0"}'
    path = tmp_path / "bias.json"
    path.write_text(f'{{"options": {options}, "tables": {{"base": [], "lora": [{",".join(rows)}]}}}}')
    page = bias_page(path)
    assert "1.500<small>[1.400, 1.600]</small>" in page
    assert "-80% [-90%, -70%]" in page
    assert "lb-better" in page
    assert "lb-same" in page
    assert "Nothing was measured" in bias_page(None)


def test_the_bias_is_looked_for_beside_the_lora(tmp_path: Path) -> None:
    studio = SimpleNamespace(model="lbgen-tiny", lora=str(tmp_path))
    assert find_bias(studio) is None
    (tmp_path / "bias.json").write_text("{}")
    assert find_bias(studio) == tmp_path / "bias.json"
