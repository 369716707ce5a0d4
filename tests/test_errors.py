import pytest

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
