"""The bar of an engine's first calls: nothing for engines that make none, and gone when they are done or fail."""

import io

import pytest
from rich.console import Console

from ernie_export.runtime.cli.warm_bar import WarmBar


def shown(fractions: list[float]) -> str:
    """Return what a terminal gets."""
    out = io.StringIO()
    with WarmBar(Console(file=out, force_terminal=True, width=80)) as bar:
        for fraction in fractions:
            bar(fraction)
    return out.getvalue()


def test_a_bar_is_shown_once_there_is_something_to_say():
    assert shown([]) == ""
    assert "Choosing kernels" in shown([0.25, 1.0])


def test_a_bar_ends_with_the_call_that_fails():
    """The cursor, which a bar hides, comes back."""
    out = io.StringIO()
    with pytest.raises(MemoryError), WarmBar(Console(file=out, force_terminal=True, width=80)) as bar:
        bar(0.5)
        raise MemoryError
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")
