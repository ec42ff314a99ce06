"""Functions and files of the package stay short enough to be read at once."""

import ast
from collections.abc import Iterator

import pytest

from tests.paths import ROOT

MOST_LINES_OF_A_FUNCTION = 60  # without its docstring
MOST_LINES_OF_A_FILE = 350
FILES = sorted((ROOT / "ernie_export").rglob("*.py"))


def functions(source: str) -> Iterator[tuple[str, int]]:
    """Yield the name of every function, and its number of lines without the docstring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) else None
            docstring_lines = docstring.end_lineno - docstring.lineno + 1 if docstring and docstring.end_lineno else 0
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1 - docstring_lines


def test_functions_are_short():
    assert FILES
    long = [
        f"{path.relative_to(ROOT)}: {name} has {lines} lines"
        for path in FILES
        for name, lines in functions(path.read_text())
        if lines > MOST_LINES_OF_A_FUNCTION
    ]
    assert long == [], "split it along a seam"


def test_files_are_short():
    long = [path.relative_to(ROOT).as_posix() for path in FILES if path.read_text().count("\n") > MOST_LINES_OF_A_FILE]
    assert long == [], "make it two"


@pytest.mark.parametrize("docstring", ["", '    """One.\n\n    Two.\n    """\n'])
def test_a_docstring_does_not_count(docstring):
    assert list(functions(f"def f():\n{docstring}    return 1\n")) == [("f", 2)]
