"""The limit on an image's pixels: one option of every command that reads images, and one argument in Python."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from ernie_export.common.errors import UserError
from ernie_export.exporter.calibration.prompts import read_prompts
from ernie_export.exporter.cli import export as export_command
from ernie_export.exporter.cli import verify as verify_command
from ernie_export.exporter.export import export
from ernie_export.runtime import load
from ernie_export.runtime.cli import bench, chat, run, serve
from tests.paths import MEDIA, MINI
from tests.progress import QUIET

COMMANDS: dict[str, click.Command] = {
    "ernie-export": export_command.command,
    "ernie-verify": verify_command.command,
    "ernie-run": run.command,
    "ernie-chat": chat.command,
    "ernie-bench": bench.command,
    "ernie-serve": serve.command,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_reads_images_has_the_option(name: str) -> None:
    option = next(parameter for parameter in COMMANDS[name].params if parameter.name == "max_image_pixels")
    assert option.opts == ["--max-image-pixels"]
    assert isinstance(option.type, click.IntRange) and option.type.min == 1
    assert option.default == (50_000_000 if name == "ernie-serve" else 89_478_485)


@pytest.mark.parametrize("function", [load, export, read_prompts])
def test_and_so_has_python(function: Callable[..., Any]) -> None:
    assert inspect.signature(function).parameters["max_image_pixels"].default == 89_478_485


def test_a_server_s_limit_for_one_image_raises_that_of_a_request() -> None:
    assert serve.ServeOptions(max_image_pixels=300_000_000).settings(Path("a"), ()).media.max_pixels == 300_000_000


def test_a_benchmark_s_images_are_held_to_it(mini_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main([str(mini_bundle), "--images", "20x20", "--max-image-pixels", "399"])
    assert ended.value.code == 2
    assert "expected images of at most 399 pixels, found 20x20" in capsys.readouterr().err


def test_so_are_those_of_a_calibration(tmp_path: Path) -> None:
    question = {"role": "user", "content": [{"type": "image", "path": str(MEDIA / "few.png")}]}
    (tmp_path / "messages.json").write_text(json.dumps([question]))
    with pytest.raises(UserError, match="expected at most 399 pixels, found"):
        export(
            MINI,
            tmp_path / "bundle",
            precision="int4",
            progress=QUIET,
            conversations=tmp_path / "messages.json",
            max_image_pixels=399,
        )
