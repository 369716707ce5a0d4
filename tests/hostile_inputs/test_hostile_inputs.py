"""Hostile inputs to the command lines and the Python API: each is one line and exit code 2, or a `UserError`.

Nothing is sampled, nothing is left behind, and what can be known before a model is loaded is said before. Everything
runs in this process.
"""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from command_lines import LBGEN, TRAIN, expand
from diffusers import StableDiffusionPipeline
from diffusers.models import UNet2DConditionModel
from python_calls import CALLS, Call

from lbgen_hf import LbGenPipeline, UserError
from lbgen_hf.cli import main as lbgen
from lbgen_hf.errors import report_errors

COMMAND_LINES = [*expand(LBGEN), *expand(TRAIN)]
# These are about what is loaded.
_LOADING = (
    "--model",
    "--variant",
    "--lora",
    "--pretrained_model_name_or_path",
    "--clip_model",
    "--quality_scorer",
    "--scorer",
)


class HeavyWorkError(Exception):
    """A model is loaded, or sampled from."""


def train_lbgen(arguments: list[str]) -> None:
    from train_lbgen import main

    with report_errors("train_lbgen"):
        main(arguments)


PROGRAMS: dict[str, Callable] = {"lbgen": lbgen, "train_lbgen": train_lbgen}


def forbid(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise HeavyWorkError(f"{owner.__name__}.{name}")

    monkeypatch.setattr(owner, name, refuse)


@pytest.fixture(autouse=True)
def no_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, UNet2DConditionModel, "forward")


def contents(root: Path) -> dict[str, int]:
    """Every file and folder, and when a file was written."""
    return {str(path.relative_to(root)): path.is_file() and path.stat().st_mtime_ns for path in root.rglob("*")}


@pytest.fixture
def leaves_nothing_behind(places: dict[str, Path]) -> object:
    before = contents(places["root"])
    yield
    assert contents(places["root"]) == before


def test_there_are_hundreds() -> None:
    lines = [*COMMAND_LINES, *CALLS]
    assert len(set(lines)) == len(lines) >= 300


@pytest.mark.usefixtures("leaves_nothing_behind")
@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_command_line_is_refused_in_one_line(
    line: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    if not any(f" {option} " in line for option in _LOADING):
        forbid(monkeypatch, StableDiffusionPipeline, "from_pretrained")
    program, *arguments = shlex.split(line)
    with pytest.raises(SystemExit) as end:
        PROGRAMS[program]([argument.format(**places) for argument in arguments])
    message = capfd.readouterr().err
    assert end.value.code == 2, message
    assert message.startswith(f"{program}: error: ")
    assert message.count("\n") == 1, message
    assert message.strip().isprintable()
    assert len(message) < 1000


@pytest.mark.usefixtures("leaves_nothing_behind")
@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_a_call_is_refused_with_a_user_error(call: Call, pipe: LbGenPipeline, places: dict[str, Path]) -> None:
    with pytest.raises(UserError) as error:
        call(pipe, places)
    message = str(error.value)
    assert message.isprintable()
    assert 10 < len(message) < 1000
