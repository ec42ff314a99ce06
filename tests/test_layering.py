"""Which way imports point: exporter -> graphs -> common, runtime -> common; no torch but where parity is checked.

Imports are parsed, wherever in a file they stand. Then every module is imported in a process where what it must do
without cannot be imported, which covers what libraries import on their own.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.paths import PROGRAMS, ROOT

PACKAGE = "ernie_export"
# Third-party packages that each extra of pyproject.toml installs, by import name.
BASE = {"numpy", "PIL", "av", "onnxruntime", "tokenizers", "jinja2", "llguidance", "click", "rich", "prompt_toolkit"}
EXPORT = {"onnx", "onnx_ir", "ml_dtypes", "sentencepiece"}
PARITY = {"torch", "transformers", "safetensors"}
SERVE = {"fastapi", "starlette", "pydantic", "pydantic_core", "uvicorn", "prometheus_client", "httpcore2"}
# Only within functions: most machines have none of them.
LAZY = {"triton", "tensorrt", "tensorrt_rtx_bindings", "cuda", "matplotlib", "opentelemetry"}
LAZY |= {"triton_python_backend_utils", "ray"}  # the first: only Triton Inference Server's stub has it
WITHOUT_TORCH = ("torch", "torchvision", "transformers", "safetensors")


@dataclass(frozen=True)
class Rule:
    """What the modules of one package may import: third-party packages, and packages of this project."""

    third_party: set[str]
    own: tuple[str, ...]

    def allows(self, name: str) -> bool:
        """Whether the module (or name in a module) `name` may be imported."""
        if name.split(".")[0] != PACKAGE:
            return name.split(".")[0] in sys.stdlib_module_names | self.third_party
        return any(f"{name}.".startswith(f"{PACKAGE}.{prefix}.") for prefix in self.own)


RUN = BASE | LAZY
SERVING = RUN | SERVE
CODE = BASE | EXPORT | LAZY
# Who may import whom: the longest prefix of a module's name that stands here decides.
RULES = {
    "": Rule(set(), ("common.version", "exporter.export", "runtime.pipeline")),  # ernie_export/__init__.py itself
    "demo": Rule(BASE, ("common", "exporter.export", "runtime.pipeline")),
    "doctor": Rule(BASE | LAZY, ("common", "doctor", "runtime.engines.device.find_gpu")),
    "common": Rule(BASE, ("common",)),
    "graphs": Rule(CODE, ("common", "graphs")),
    "exporter": Rule(CODE, ("common", "graphs", "exporter")),
    "exporter.calibration": Rule(BASE | EXPORT, ("common", "graphs", "exporter", "runtime")),  # runs graphs
    "exporter.check_processors": Rule(BASE | EXPORT, ("common", "runtime.preprocess")),  # loads what a runtime will
    "exporter.verify": Rule(BASE | EXPORT | PARITY, ("common", "doctor", "graphs", "exporter", "runtime")),
    "exporter.cli.verify": Rule(BASE | EXPORT | PARITY, ("common", "graphs", "exporter", "runtime")),
    "runtime": Rule(RUN, ("common", "runtime")),
    "runtime.serving": Rule(SERVING, ("common", "runtime")),
    "runtime.cli.serve": Rule(SERVING, ("common", "runtime")),
}


def rule_of(module: str) -> Rule:
    """The rule for a module such as `graphs.decoder`; of the package itself ""."""
    parts = module.split(".") if module else []
    prefixes = (".".join(parts[:length]) for length in range(len(parts), -1, -1))
    return RULES[next(prefix for prefix in prefixes if prefix in RULES)]


def modules() -> list[str]:
    """Every module of the package, as `graphs.ops.mrope.spec`; the package itself is ""."""
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts) for path in files]
    return [name.removesuffix("__init__").removesuffix(".") for name in names]


def source(module: str) -> str:
    """The text of a module."""
    path = (ROOT / PACKAGE).joinpath(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


def imports(text: str) -> Iterator[tuple[str, bool]]:
    """Each name imported by a source text, and whether that happens on import of the module."""

    def visit(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: name the module in full, so that this test can place it"
            yield from ((f"{node.module}.{alias.name}", at_once) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            if isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                yield node.args[0].value, at_once
            else:
                yield "a computed name", at_once
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_once and not inside)

    return visit(ast.parse(text), True)


def is_kernel(module: str) -> bool:
    """Whether this is, or lies in, a module of Triton kernels: these import Triton at once, and are imported lazily."""
    parts = module.split(".")[:4]
    if parts[:2] != ["graphs", "ops"] or len(parts) < 4 or not parts[3].startswith("kernel"):
        return False
    return (ROOT / PACKAGE).joinpath(*parts).with_suffix(".py").is_file()


def violations(module: str, text: str) -> list[str]:
    """What `module`, with this source text, imports against its rule."""
    rule = rule_of(module)

    def is_lazy(name: str) -> bool:
        if is_kernel(name.removeprefix(f"{PACKAGE}.")) or name.split(".")[0] == "triton":
            return not is_kernel(module)
        return name.split(".")[0] in LAZY

    return [name for name, at_once in imports(text) if not rule.allows(name) or (at_once and is_lazy(name))]


@pytest.mark.parametrize("module", modules())
def test_imports_point_one_way(module):
    assert violations(module, source(module)) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("graphs.builder", "from ernie_export.exporter import bundle"),
        ("graphs.builder", "import ernie_export.runtime.sampling"),
        ("graphs.builder", "import torch"),
        ("graphs.builder", "import triton"),
        ("graphs.ops.mrope.plugin", "from ernie_export.graphs.ops.mrope import kernel"),
        ("graphs.ops.mrope.plugin", "from ernie_export.graphs.ops.mrope.kernel import rope"),
        ("graphs.ops.mrope.plugin", "import triton"),
        ("graphs.ops.mrope.kernel", "import tensorrt"),
        ("exporter.export", "from ernie_export.runtime import load"),
        ("exporter.calibration.calibrate", "import torch"),
        ("exporter.export", "def f():\n    from transformers import AutoModel"),
        ("exporter.export", "import safetensors.torch"),
        ("runtime.pipeline", "from ernie_export.graphs import build"),
        ("runtime.pipeline", "from ernie_export.common_of_mine import x"),
        ("runtime.pipeline", "from ernie_export import graphs"),
        ("runtime.pipeline", "if TYPE_CHECKING:\n    import onnx"),
        ("runtime.pipeline", "importlib.import_module('torch')"),
        ("runtime.pipeline", "import fastapi"),
        ("runtime.serving.http.app", "from ernie_export.exporter import export"),
        ("runtime.serving.http.app", "import torch"),
        ("common.errors", "import onnx"),
        ("common.errors", "from ernie_export.graphs.config import ErnieConfig"),
        ("runtime.pipeline", "from ernie_export.graphs.config import ErnieConfig"),
        ("runtime.engines.tensorrt", "try:\n    import tensorrt\nexcept ImportError: pass"),
    ],
)
def test_a_violation_is_seen(module, text):
    assert violations(module, text)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("exporter.verify.torch_side", "import torch"),
        ("exporter.cli.verify", "from ernie_export.runtime import load"),
        ("exporter.cli.export", "from ernie_export.common.command import run"),
        ("runtime.pipeline", "from ernie_export.common.errors import UserError"),
        ("runtime.pipeline", "from ernie_export.common import manifest"),
        ("runtime.serving.http.app", "from fastapi import FastAPI"),
        ("runtime.engines.tensorrt", "def engine():\n    import tensorrt"),
        ("graphs.ops.mrope.kernel", "import triton.language"),
        ("graphs.ops.mrope.plugin", "def f():\n    from ernie_export.graphs.ops.mrope import kernel"),
    ],
)
def test_what_is_allowed_passes(module, text):
    assert violations(module, text) == []


def test_torch_is_imported_only_where_parity_is_checked():
    folders = [
        path for path in ROOT.iterdir() if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
    ]
    may = ("tests", "tools", "benchmarks")
    users = [
        path.relative_to(ROOT).as_posix()
        for folder in folders
        if folder.name not in (*may, "bundles", "scratch", "build", "dist") and folder.name[0] != "."
        for path in folder.rglob("*.py")
        if any(name.split(".")[0] in ("torch", "torchvision", "transformers") for name, _ in imports(path.read_text()))
    ]
    assert [path for path in users if not path.startswith("ernie_export/exporter/verify")] == []


def import_without(blocked: tuple[str, ...], names: list[str]) -> str:
    """Import modules in a process without `blocked`; returns its error output."""
    modules = [f"ernie_export.{name}" if name else "ernie_export" for name in names]
    request = {"blocked": blocked, "modules": modules, "arguments": None}
    command = [sys.executable, str(PROGRAMS / "run_without.py"), json.dumps(request)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode or process.stdout == f"{len(names)}\n"
    return process.stderr


def test_the_runtime_imports_without_torch_and_onnx():
    names = [name for name in modules() if name.startswith("runtime")]
    blocked = (*WITHOUT_TORCH, "onnx", "onnx_ir", f"{PACKAGE}.exporter", f"{PACKAGE}.graphs")
    assert import_without(blocked, names) == ""
    names = [name for name in names if not name.startswith("runtime.serving.")]
    assert import_without((*WITHOUT_TORCH, *SERVE), names) == ""


def test_graphs_and_exporter_import_without_torch():
    names = [name for name in modules() if not name.startswith(("runtime", "exporter.verify", "exporter.cli.verify"))]
    assert import_without((*WITHOUT_TORCH, *LAZY), [name for name in names if not is_kernel(name)]) == ""
    assert import_without(WITHOUT_TORCH, [name for name in names if is_kernel(name)]) == ""


def test_a_blocked_package_is_absent_there():
    assert "No module named 'onnxruntime' (blocked)" in import_without(("onnxruntime",), ["runtime.engines.ort_cpu"])
