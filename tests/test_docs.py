"""The documentation: its links lead somewhere, its commands exist, and what can run here runs."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer

from lbgen_hf.biaslab import MODELS
from lbgen_hf.cli import app, main
from lbgen_hf.evaluation.pretraining_config import make_parser as make_backbone_parser
from lbgen_hf.fine_tuning.config import make_parser as make_training_parser
from lbgen_hf.pipeline_lbgen import LORA_FILE

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("model_cards/*.md"), ROOT / "demo/README.md"]
)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    """Each command of the page's bash blocks and of its `lbgen ...` spans, as words."""
    spans = re.findall(r"`((?:lbgen|accelerate launch|python) [^`]*)`", page.read_text(encoding="utf-8"))
    for text in [*blocks(page, "bash"), *spans]:
        for line in re.sub(r"\\\n", " ", text).replace("...", "").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part.partition(" #")[0])
                if words:
                    yield words


def script_options(script: Path) -> set[str]:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    of_package = {"train_lbgen.py": make_training_parser, "train_backbone.py": make_backbone_parser}
    make_parser = of_package.get(script.name) or module.make_parser
    return {option for action in make_parser()._actions for option in action.option_strings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_their_options_exist(page: Path) -> None:
    known = typer.main.get_command(app).commands
    for words in commands(page):
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        if words[0].endswith("lbgen"):
            name, own = words[1], 1
        elif "lbgen_hf" in words and "-m" in words:
            own = words.index("lbgen_hf") + 1
            name = words[own]
        else:
            scripts = [word for word in words if word.startswith("training/") and word.endswith(".py")]
            for script in scripts:
                assert (ROOT / script).is_file(), script
                if "make_parser" in (ROOT / script).read_text():
                    ours = {word for word in words[words.index(script) :] if word.startswith("--")}
                    assert ours <= script_options(ROOT / script), words
            continue
        assert name in known, words
        options = {word for word in words[own:] if word.startswith("--")}
        assert options <= {option for parameter in known[name].params for option in parameter.opts}, words


@pytest.mark.parametrize("page", ["method.md", "biaslab.md", "context_swap.md"])
def test_names_in_code_exist_in_the_file_that_they_link(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    for name, target in re.findall(r"\[`(\w+)`\]\(\.\./([^)]+\.py)\)", text):
        assert re.search(rf"^(def|class) {name}\b", (ROOT / target).read_text(), re.MULTILINE), (name, target)


def test_biaslab_page_runs() -> None:
    names: dict = {}
    for block in blocks(ROOT / "docs" / "biaslab.md", "python"):
        exec(block, names)
    assert names["rendered"].images.shape == (4, 3, 64, 64)


@pytest.mark.skipif(not (MODELS / "lora" / LORA_FILE).is_file(), reason="this checkout ships no LoRA")
def test_quickstart_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the installation, the demo's page, and the larger dataset of `lbgen quickstart`."""
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "quickstart.md"

    def run(words: list[str]) -> None:
        with pytest.raises(SystemExit) as end:
            main(words)
        assert not end.value.code

    run(shlex.split("generate --images-per-class 1 --steps 2 --out lbgen-quickstart"))
    for words in commands(page):
        if words[0] == "lbgen" and words[1] in ("generate", "status", "verify") and len(words) > 2:
            run(words[1:])
    names: dict = {}
    for block in blocks(page, "python"):
        exec(block, names)
    again, first = (np.asarray(names[name].images[0], dtype=int) for name in ("again", "output"))
    assert np.abs(again - first).max() <= 1  # another batch size rounds otherwise
    assert names["low_bias"].seeds == names["output"].seeds


def test_tables_are_the_raw_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python docs/update_tables.py` has been run since the last measurement."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    from tables import filled
    from update_tables import PAGES

    for name, tables in PAGES.items():
        page = (ROOT / name).read_text(encoding="utf-8")
        assert page == filled(page, tables()), name


def test_reports_are_merged_where_they_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    from reproduction_results import merged
    from tables import read_results

    first, second = read_results("reproduction"), read_results("reproduction_images")
    report = merged(first, second)
    assert set(report["arms"]) == {*first["arms"], *second["arms"]}
    assert all(order in report["orders"] for order in first["orders"])
    second["metrics"]["base"]["mi_background"][0] += 0.01
    with pytest.raises(ValueError, match="mi_background of base"):
        merged(first, second)


def test_a_page_without_a_place_for_its_table_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    from tables import filled

    assert filled("a <!-- x -->old<!-- /x --> b", {"x": "new"}) == "a <!-- x -->\nnew\n<!-- /x --> b"
    with pytest.raises(ValueError, match="0 places for y"):
        filled("a <!-- x --><!-- /x -->", {"y": "new"})
