"""Tests lean on parameters, not on patched internals: few patches, and none of a private name or of sys.path."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

MOST = 23  # patches in all; lower it whenever one goes
PATCHES = ("setattr", "setitem", "delattr", "delitem")


def patches(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and target ("module.name") of every patch that pytest's MonkeyPatch makes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PATCHES:
            if "patch" in ast.unparse(node.func.value):
                # Of two forms: (object, "name", value) and ("module.name", value).
                yield node.lineno, ".".join(ast.unparse(argument).strip("'") for argument in node.args[:-1])


def path_edits(source: str) -> Iterator[int]:
    """Yield the lines that name sys.path."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
            yield node.lineno


def files() -> list[Path]:
    """Return all Python files of the tests."""
    return sorted((ROOT / "tests").rglob("*.py"))


def test_few_things_are_patched_and_no_private_one():
    found = [
        (f"{path.relative_to(ROOT)}:{line}", target) for path in files() for line, target in patches(path.read_text())
    ]
    private = [place for place, target in found if any(part.startswith("_") for part in target.split("."))]
    assert not private, "give what is patched a parameter"
    assert len(found) <= MOST, "give what is patched a parameter, or pass a fake of tests/fakes"


def test_no_test_edits_the_import_path():
    edits = [f"{path.relative_to(ROOT)}:{line}" for path in files() for line in path_edits(path.read_text())]
    assert edits == [], "pyproject.toml has pythonpath; a process has PYTHONPATH"


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("monkeypatch.setattr(module, '_name', 1)", "module._name"),
        ("monkeypatch.setattr('package.name', 1)", "package.name"),
        ("patched.setitem(table, 'key', 1)", "table.key"),
    ],
)
def test_patches_are_found(source, target):
    assert list(patches(source)) == [(1, target)]


def test_path_edits_are_found():
    assert list(path_edits("import sys\nsys.path.insert(0, '')")) == [2]
