"""The command line `lbgen` as a user meets it: help, version, errors of one line, Ctrl-C."""

import os
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lbgen_hf
from lbgen_hf import cli


def run(*arguments: str) -> None:
    cli.main(arguments)


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_the_commands(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(*arguments)
    assert not exit_info.value.code
    assert "classes" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_info:
        run("--version")
    assert not exit_info.value.code
    assert capsys.readouterr().out == f"lbgen_hf {lbgen_hf.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clases"], "'clases'"),
        (["classes", "--colour"], "--colour"),
        (["classes", "biaslab", "again"], "again"),
        (["classes", "imagenet1k"], "did you mean 'imagenet-1k'?"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(*arguments)
    assert exit_info.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("lbgen: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


def test_classes_prints_ids_wnids_and_names(tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("n01443537\nmoon\n")
    with pytest.raises(SystemExit) as exit_info:
        run("classes", str(tmp_path / "classes.txt"))
    assert not exit_info.value.code
    assert capsys.readouterr().out == "0\tn01443537\tgoldfish\n1\t-\tmoon\n"


def test_ctrl_c_exits_130(monkeypatch, capsys):
    def interrupted(source):
        raise KeyboardInterrupt

    monkeypatch.setattr("lbgen_hf.class_names.load_class_names", interrupted)
    with pytest.raises(SystemExit) as exit_info:
        run("classes", "biaslab")
    assert exit_info.value.code == 130
    assert capsys.readouterr().err == "lbgen: interrupted.\n"


def entry_point() -> str:
    """The program that the installed command `lbgen` runs."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"]["lbgen"].partition(":")
    return f"from {module} import {function}; {function}()"


@pytest.mark.parametrize("program", [["-m", "lbgen_hf"], ["-c", entry_point()]], ids=["module", "script"])
def test_ctrl_c_while_it_imports_is_one_line(program, tmp_path):
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")  # as if pressed at this import
    package = Path(lbgen_hf.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{package}"}
    done = subprocess.run([sys.executable, *program, "--help"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "lbgen: interrupted.\n")


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_import_and_help_stay_light():
    """Half a second of processor time to import, one for the help, Python's own start in both; nothing heavy."""
    heavy = ("torch", "diffusers", "transformers", "datasets", "open_clip", "timm", "gradio", "numpy")
    report = f"import sys; print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    help_page = "import lbgen_hf.cli\ntry: lbgen_hf.cli.main(['--help'])\nexcept SystemExit: pass\n"
    for program, limit in [("import lbgen_hf\n", 0.5), (help_page, 1.0)]:
        start = children_seconds()
        printed = subprocess.run([sys.executable, "-c", program + report], capture_output=True, text=True, check=True)
        assert printed.stderr.strip() == "[]"
        assert children_seconds() - start < limit


def test_every_public_name_is_found_where_it_is_said_to_be():
    for name in lbgen_hf.__all__:
        assert getattr(lbgen_hf, name) is not None
    assert set(lbgen_hf.__all__) <= set(dir(lbgen_hf))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        lbgen_hf.nothing  # noqa: B018
