import os
import subprocess
import sys

import pytest

from lbgen_hf import errors
from lbgen_hf.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one  \r\ntwo"), "one  "),
        (ValueError(), "ValueError"),
        (OSError(" \n"), "OSError"),
    ],
)
def test_an_error_is_told_in_one_line_even_without_a_message(error, line):
    assert first_line(error) == line


def test_the_launchers_other_ranks_tell_their_own_errors(monkeypatch, capsys):
    monkeypatch.setattr(errors, "_SECONDS_FOR_RANK_0", 0.0)
    monkeypatch.setenv("RANK", "5")
    with pytest.raises(SystemExit) as stop, errors.report_errors("lbgen"):
        raise errors.UserError("its disk is full")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "[rank 5] lbgen: error: its disk is full\n"


def test_a_folder_that_may_not_be_read_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop, errors.report_errors("train_backbone"):
        raise PermissionError(13, "Permission denied", "images/a")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "train_backbone: error: images/a: Permission denied\n"


def test_in_a_locale_without_its_letters_text_is_escaped_and_a_path_is_refused_in_one_line():
    """As a library refuses a path of the C locale, which Python gives it as surrogates."""
    program = (
        "from lbgen_hf.errors import report_errors\n"
        "with report_errors('prog'):\n"
        "    print('caf\\xe9')\n"
        "    open('caf\\xe9', 'x')\n"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = subprocess.run([sys.executable, "-c", program], env={**os.environ, **locale}, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "caf\\xe9\n"), ran.stderr
    assert ran.stderr.startswith("prog: error: ")
    assert "'\\xe9'" in ran.stderr
    assert "PYTHONUTF8=1" in ran.stderr
    assert ran.stderr.count("\n") == 1
