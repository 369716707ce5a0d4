"""Long work says how far it is where stderr is no terminal, also while nothing is done."""

import time

import pytest

from lbgen_hf import progress


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.05)


def wait_for_lines(capsys: pytest.CaptureFixture[str], count: int, seen: str = "") -> list[str]:
    deadline = time.monotonic() + 60
    while seen.count("\n") < count and time.monotonic() < deadline:
        time.sleep(0.02)
        seen += capsys.readouterr().err
    return seen.splitlines()


def test_lines_come_by_the_clock(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.show_progress("verifying") as show:
        assert wait_for_lines(capsys, 1)[0].startswith("verifying: starting, for ")
        show(10, 100)
        capsys.readouterr()
        assert "verifying: 10 of 100 images" in wait_for_lines(capsys, 2)
        show(40, 100)
        capsys.readouterr()
        line = wait_for_lines(capsys, 2)[-1]
        assert line.startswith("verifying: 40 of 100 images, ")
        assert line.endswith(" min left")
    capsys.readouterr()
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_only_the_first_rank_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with progress.show_progress("generating") as show:
        show(1, 2)
        time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 60.0)
    with progress.show_progress("generating") as show:
        show(2, 2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(10, "30 of 100 images, 2.00 images/s, 1 min left"), (1200, "30 of 100 images, 1.00 images/min, 70 min left")],
)
def test_slow_work_is_told_by_the_minute(seconds: float, expected: str) -> None:
    assert progress._describe([(0.0, 0, 0), (0.0, 10, 100), (seconds, 30, 100)], "images") == expected
