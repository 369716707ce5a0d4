"""What a Space reads, and `lbgen demo`'s manners."""

import json
import math
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import gradio
import pytest
import startup
from app import THEME, find_bias
from bias import bias_page
from huggingface_hub import metadata_load
from packaging.version import Version

from lbgen_hf.cli import main
from lbgen_hf.errors import UserError
from lbgen_hf.pipeline_lbgen import LORA_FILE

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
    [
        (["--dataset", "nowhere"], "nowhere"),
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--model", "/no/such/model", "--scorer", "best"], "unknown quality scorer 'best'"),
    ],
)
def test_what_is_missing_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["demo", *options])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("lbgen: error:")
    assert message in line


def bias_file(
    path: Path, base: float = 1.5, options: dict[str, str] | None = None, **relative: tuple[float, float, float]
) -> Path:
    """What `measure_bias.py` writes, of metrics with these relative changes."""
    rows = [
        {
            "name": name,
            "base": [base, base - 0.1, base + 0.1],
            "tuned": [0.3, 0.2, 0.4],
            "change": [0, 0, 0],
            "relative": change,
        }
        for name, change in relative.items()
    ]
    defaults = {
        "pretrained_model_name_or_path": "lbgen-tiny",
        "images_per_class": "100",
        "num_inference_steps": "50",
        "guidance_scale": "2.0",
        "seed": "1",
        "judge": "judge",
    }
    path.write_text(json.dumps({"options": defaults | (options or {}), "tables": {"base": [], "lora": rows}}))
    return path


def test_the_start_says_what_it_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(startup, "EVERY_S", 0.01)
    start = startup.Startup()
    start.report("loading")
    said = ""
    with start:
        while said.count("\n") < 2:
            time.sleep(0.05)
            said += capsys.readouterr().out
    lines = said.splitlines()
    assert all(line.startswith("lbgen demo: loading") for line in lines)
    assert "so far" in lines[-1]


def test_the_first_message_comes_before_the_heavy_imports() -> None:
    code = "import startup, sys; startup.Startup().report('x'); print({'torch', 'gradio'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "demo", capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["lbgen demo: x", "set()"]


def test_the_bias_page_shows_what_measure_bias_wrote(tmp_path: Path) -> None:
    first = bias_file(tmp_path / "1.json", mi_background=(-0.8, -0.9, -0.7), class_accuracy=(0.01, -0.02, 0.04))
    second = bias_file(tmp_path / "2.json", mi_background=(0.5, 0.4, 0.6), class_accuracy=(-0.5, -0.6, -0.4))
    page = bias_page({"first <b>": first, "second": second})
    assert "1.500 <small>[1.400, 1.600]</small>" in page
    assert "−80% <small>[−90%, −70%]</small>" in page
    assert "first &lt;b&gt;" in page
    assert page.count("Base model") == 2  # once a metric
    assert re.findall(r'<svg viewBox="0 0 200 16" class="lb-(\w+)"', page) == ["better", "worse", "same", "worse"]
    assert "No bias has been measured" in bias_page({})


def test_the_bias_page_says_nothing_of_marked_images_where_nearly_all_are_plain(tmp_path: Path) -> None:
    change = {"mi_marked_place": (-0.8, -0.9, -0.7), "plain_place": (0.1, 0.0, 0.2)}
    path = bias_file(tmp_path / "1.json", base=0.5, **change)
    before = bias_page({"first": path})
    assert '<td role="cell">–</td>' not in before
    record = json.loads(path.read_text())
    next(row for row in record["tables"]["lora"] if row["name"] == "plain_place")["tuned"] = [0.99, 0.98, 1.0]
    path.write_text(json.dumps(record))
    page = bias_page({"first": path})
    assert '<td role="cell">first</td><td role="cell">–</td><td role="cell" class="lb-chart"></td>' in page
    assert page.count("<svg") == before.count("<svg") - 1


def lines(page: str) -> list[tuple[str, str]]:
    """Model and value of each line of the table."""
    return re.findall(r'<td role="cell">([^<]+)</td><td role="cell">([\d.]+) <small>', page)


def test_each_lora_stands_below_its_own_base_model_with_its_own_options(tmp_path: Path) -> None:
    change = {"mi_background": (-0.8, -0.9, -0.7)}
    more = {"pretrained_model_name_or_path": "/home/ada/another", "num_inference_steps": "25"}
    first, third = (bias_file(tmp_path / f"{name}.json", **change) for name in (1, 3))
    second = bias_file(tmp_path / "2.json", base=0.7, options=more, **change)
    page = bias_page({"first": first, "second": second, "third": third})
    assert lines(page) == [
        ("Base model of first, third", "1.500"),
        ("first", "0.300"),
        ("third", "0.300"),
        ("Base model of second", "0.700"),
        ("second", "0.300"),
    ]
    shared = "100 images of each class, {} steps, guidance 2.0, noise of seed 1, seen by judge."
    assert f"<p>first, third: base model lbgen-tiny, {shared.format(50)}</p>" in page
    assert f"<p>second: base model another, {shared.format(25)}</p>" in page
    alone = bias_page({"first": first, "third": third})
    assert lines(alone) == [("Base model", "1.500"), ("first", "0.300"), ("third", "0.300")]
    assert f"<p>base model lbgen-tiny, {shared.format(50)}</p>" in alone


def test_of_a_file_of_several_loras_the_one_beside_it_is_shown(tmp_path: Path) -> None:
    path = bias_file(tmp_path / "bias.json", mi_background=(0.0, 0.0, 0.0))
    record = json.loads(path.read_text())
    (other,) = (dict(row, tuned=[0.9, 0.8, 1.0]) for row in record["tables"]["lora"])
    record["tables"] |= {f"elsewhere/{tmp_path.name}": [other]}
    path.write_text(json.dumps(record))
    assert lines(bias_page({"a": path})) == [("Base model", "1.500"), ("a", "0.900")]
    (tmp_path / "third").mkdir()
    moved = path.rename(tmp_path / "third" / "bias.json")
    with pytest.raises(UserError, match="it has several LoRAs, and not one that is called third"):
        bias_page({"a": moved})


def marks(page: str) -> list[float]:
    return [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', page)]


def test_a_change_is_drawn_where_it_is(tmp_path: Path) -> None:
    change = {
        "mi_background": (-0.5,) * 3,
        "mi_texture": (1.0,) * 3,
        "mi_place": (3.25, 2.93, 3.55),
        "quality": (0.0,) * 3,
    }
    page = bias_page({"lora": bias_file(tmp_path / "bias.json", **change)})
    halved, doubled, fourfold, same = marks(page)
    assert same == 100
    assert doubled - same == pytest.approx(same - halved, abs=0.11)  # log2 of the ratio
    assert fourfold - same == pytest.approx((doubled - same) * math.log2(4.25), abs=0.25)
    assert fourfold < 192  # of 200, its interval beside it
    assert "×4" in page


def test_a_change_beyond_the_axis_is_an_arrow(tmp_path: Path) -> None:
    change = {"mi_background": (-1.0, -1.0, -1.0), "mi_texture": (99.0, 90.0, 110.0)}
    page = bias_page({"lora": bias_file(tmp_path / "bias.json", **change)})
    assert marks(page) == []
    assert page.count(" Z") == 2
    assert "+9900%" in page


@pytest.mark.parametrize(
    "content", ["{", "{}", "[]", '{"tables": {"base": [{}]}}', '{"options": {}, "tables": {"base": []}}']
)
def test_a_damaged_file_of_bias_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "bias.json").write_text(content)
    with pytest.raises(UserError, match=r"bias\.json is not what training/measure_bias\.py"):
        bias_page({"a": tmp_path / "bias.json"})


def test_the_bias_is_looked_for_beside_each_lora(tmp_path: Path) -> None:
    weights = tmp_path / LORA_FILE
    weights.touch()
    studio = SimpleNamespace(loras={"a": str(tmp_path), "a's file": str(weights), "b": "user/elsewhere"})
    assert find_bias(studio) == {}
    measured = tmp_path / "bias.json"
    measured.write_text("{}")
    assert find_bias(studio) == {"a": measured, "a's file": measured}


def rgb(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", ["", "_dark"])
@pytest.mark.parametrize(
    ("text", "fill"),
    [
        ("button_primary_text_color", "button_primary_background_fill"),
        ("button_primary_text_color", "button_primary_background_fill_hover"),
        ("button_cancel_text_color", "button_cancel_background_fill"),
        ("button_cancel_text_color", "button_cancel_background_fill_hover"),
        ("block_info_text_color", "block_background_fill"),
        ("body_text_color_subdued", "body_background_fill"),
        ("link_text_color", "body_background_fill"),
        ("input_placeholder_color", "input_background_fill"),
    ],
)
def test_the_theme_reaches_wcag_aa(text: str, fill: str, dark: str) -> None:
    def colour(name: str) -> str:
        value = getattr(THEME, name + dark, None) or getattr(THEME, name)
        while value.startswith("*"):
            value = getattr(THEME, value[1:] + dark, None) or getattr(THEME, value[1:])
        return {"white": "#ffffff"}.get(value, value)

    low, high = sorted([luminance(colour(text)), luminance(colour(fill))])
    assert (high + 0.05) / (low + 0.05) >= 4.5, (colour(text), colour(fill))
