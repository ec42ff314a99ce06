"""The CUDA provider of the wheel onnxruntime-gpu takes our graphs whole, on stand-ins for CUDA's libraries."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.common.test_expert_layout import PROVIDERS
from tests.paths import ROOT

# Launches and copies of the captured steps of 3, 1 and 8 sequences, and of the choices of their tokens.
LAUNCHES = {"fp16": {97}, "bf16": {97}, "int4-fp16": {106, 108}}
CHOICES = {2, 3}
GROWTH = 2**20  # bytes that calls may take after the first ones, for a larger picture


@pytest.fixture(scope="module")
def checked() -> str:
    package = Path(sys.prefix, "onnxruntime_gpu")
    assert package.is_dir(), f"{package} is missing: pip install --no-deps --target, which `make test` runs"
    command = [sys.executable, str(ROOT / "tools" / "cuda_stub" / "check.py"), str(package)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_provider_lays_out_experts_as_we_do(checked):
    assert set(re.findall(r"SHA-256: (\w+)", checked)) == set(PROVIDERS.values())


@pytest.mark.parametrize("precision", LAUNCHES)
def test_a_decode_step_is_captured_whole_in_as_many_launches_as_the_page_says(checked, precision):
    """A node left to the CPU fails the capture; the page of results gives these numbers."""
    *_, before = checked.split(f"\n{precision}: ran on")[0].split(" ran on ")
    captured = {int(number) for number in re.findall(r"captured a graph of (\d+) launches", before)}
    assert captured == LAUNCHES[precision] | CHOICES
    page = (ROOT / "docs" / "results" / "gpu.md").read_text()
    assert "97 in fp16 and bf16, 106 or 108 in int4-fp16" in page


def test_calls_after_the_first_take_next_to_no_memory(checked):
    """The first calls took the experts' working memory for every number of rows."""
    grown = [int(taken) for taken in re.findall(r"(\d+) after them", checked)]
    assert len(grown) == len(LAUNCHES) and max(grown) < GROWTH
