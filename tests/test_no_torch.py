"""Exporting needs no torch, answering neither torch nor the exporter's libraries: both done where these are absent."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.paths import MINI, PROGRAMS

TORCH = ("torch", "torchvision", "transformers", "safetensors")
EXPORT = ("onnx", "onnx_ir", "ml_dtypes", "ernie_export.exporter", "ernie_export.graphs.builder")


def run(module: str, blocked: tuple[str, ...], *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run a command's entry point in a process without `blocked`."""
    request = {"blocked": blocked, "modules": [module], "arguments": ["command", *map(str, arguments)]}
    command = [sys.executable, str(PROGRAMS / "run_without.py"), json.dumps(request)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("no-torch")
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return folder


@pytest.fixture(scope="module")
def bundle(folder):
    """Exported without torch."""
    process = run("ernie_export.exporter.cli.export", TORCH, MINI, "-o", folder / "bundle")
    assert process.returncode == 0, process.stderr
    return folder / "bundle"


@pytest.mark.parametrize("blocked", [TORCH, TORCH + EXPORT], ids=["without torch", "without torch and onnx"])
def test_a_question_with_a_picture_is_answered(bundle, folder, blocked):
    options = ["--image", folder / "picture.png", "--max-new-tokens", 4, "--json"]
    process = run("ernie_export.runtime.cli.run", blocked, bundle, "What is it?", *options)
    assert process.returncode == 0, process.stderr
    answer = json.loads(process.stdout)
    assert 1 <= len(answer["tokens"]) <= 4 and answer["prompt_tokens"] > 8


def test_what_is_blocked_is_absent(folder):
    """The block works: an export without onnx says which extra it needs, in one line."""
    process = run("ernie_export.exporter.cli.export", ("onnx",), MINI, "-o", folder / "other")
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    assert "onnx" in process.stderr and "extra 'export'" in process.stderr
    assert not (folder / "other").exists()
