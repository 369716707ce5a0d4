"""What a user types wrong at `lbgen`: one line on stderr, exit code 2, nothing written, no model loaded."""

import logging
from pathlib import Path

import pytest

from lbgen_hf.cli import main
from lbgen_hf.errors import UserError
from lbgen_hf.pipeline_lbgen import LbGenPipeline

NUMBERS = {
    "--images-per-class": ["0", "-1", "x", "1.5", "nan", "1000000000000", "9" * 400],
    "--seed": ["-1", "9223372036854775808", "x", "9" * 400],
    "--batch-size": ["0", "-1", "1000000", "x"],
    "--shard-size": ["-1", "1000000", "x"],
    "--steps": ["0", "-1", "1001", "nan", "9" * 400],
    "--guidance-scale": ["-1", "nan", "inf", "-inf", "1e400", "x"],
    "--guidance-start": ["-0.1", "1.1", "nan", "inf"],
    "--guidance-stop": ["-0.1", "1.1", "nan"],
    "--cache-interval": ["0", "-1", "nan", "9" * 400],
    "--image-quality": ["0", "101", "-5", "x"],
    "--resolution": ["0", "7", "-1", "100000", "9" * 400],
    "--min-clip-score": ["nan", "inf", "-1.1", "1.1"],
    "--min-quality": ["nan", "0.9", "5.1", "inf"],
    "--ray-workers": ["0", "-1", "x", "1000000"],
}
TEXTS = {
    "--format": ["bmp", "", "JPEG"],
    "--preset": ["slow", "", "Paper"],
    "--dtype": ["int8", "float16", "", "double"],
    "--device": ["gpu", "cuda:99", "cpu:-1", "", "meta:x"],
    "--scheduler": ["magic", "", "UNet2DConditionModel", "__class__"],
    "--classes": ["nowhere", "", "/dev/null", "imagenet-2k"],
    "--model": ["nowhere/model", "", "a/b/c", "../x", "lbgen-tinny"],
    "--lora": ["nowhere/lora", "/dev/null/x", "a/b/c"],
    "--scorer": ["best", "qalign"],
    "--out": ["/dev/null", "/dev/null/out", "/proc/out", "x" * 300, "a\0b"],
    "--guidance-interval": ["0"],
    "--quality": ["95"],
}
CASES = [[flag, value] for flag, values in {**NUMBERS, **TEXTS}.items() for value in values]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(LbGenPipeline, "_load", None)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    printed = capsys.readouterr()
    assert exit_info.value.code == 2, printed
    assert printed.err.startswith("lbgen: error: "), printed.err
    assert printed.err.count("\n") == 1, printed.err
    assert printed.out == ""
    return printed.err


@pytest.mark.parametrize(("flag", "value"), CASES, ids=lambda value: value[:20].replace("\0", "NUL"))
def test_generate_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path, flag: str, value: str) -> None:
    options = {"--device": "cpu", "--out": "out", flag: value}
    refusal(capsys, "generate", *(word for option in options.items() for word in option))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "nowhere"],
        ["verify", "nowhere"],
        ["publish", "nowhere", "--repo", "a/b"],
        ["export", "nowhere", "tars"],
        ["score", "nowhere"],
        ["score", "."],
        ["score", ".", "--batch-size", "0"],
        ["score", ".", "--dtype", "int8"],
        ["score", ".", "--device", "gpu"],
        ["classes", "nowhere"],
        ["demo", "--port", "0"],
        ["demo", "--port", "70000"],
        ["demo", "--port", "x"],
        ["demo", "--host", "not a host"],
        ["demo", "--host", "203.0.113.1"],
        ["quickstart", "--out", "/dev/null/x"],
        ["generate"],
        ["nothing"],
        ["--nothing"],
    ],
    ids=" ".join,
)
def test_commands_refuse(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    refusal(capsys, *arguments)


def test_what_a_library_logs_of_an_error_is_no_second_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: str) -> None:
        logging.error("as open_clip logs it")
        raise UserError(f"cannot load {source}")

    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr("lbgen_hf.class_names.load_class_names", fail)
    assert refusal(capsys, "classes", "x") == "lbgen: error: cannot load x\n"


def test_the_help_keeps_its_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    printed = capsys.readouterr().out
    assert "lbgen_hf[ray]" in printed
    assert "[default: the model's" in printed
