"""A UserError is one printable line, whatever stands in it."""

import pytest

from ernie_export.common.errors import MAX_LENGTH, UserError


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("model: expected é, found \U0001f600", "model: expected é, found \U0001f600"),
        ("first\nsecond\r\nthird\x0bfourth\u2028fifth", "first second third fourth fifth"),
        ("\x1b[31mred\x00\x07", "\\x1b[31mred\\x00\\x07"),
        ("a\u202eb", "a\\u202eb"),
        ("half \ud800 of a pair", "half \\ud800 of a pair"),
    ],
)
def test_one_printable_line(message: str, line: str) -> None:
    assert str(UserError(message)) == line
    assert line.isprintable()


def test_a_long_one_is_cut_in_the_middle() -> None:
    line = str(UserError("/path" + "x" * 10**6 + "the end"))
    assert len(line) < MAX_LENGTH + 10 and line.startswith("/path") and line.endswith("the end") and "…" in line
