"""Take the README's pictures of the server's page: real conversations with a bundle of mini-ernie, in Chromium.

    python tools/screenshots.py bundles/mini-ernie examples/screenshots

Fails if an answer is not the one that `examples/questions.json` has. Chromium: apt-get install chromium.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import click
from PIL import Image
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SERVE = "from ernie_export.runtime.cli.serve import main; main()"
# Quiet, in a container as well, and without anything that asks other machines.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
# File, width and height in CSS pixels, colours, and the question of examples/questions.json.
SHOTS = (
    ("desktop-light.png", 960, 900, "light", "picture, then clip"),
    ("desktop-dark.png", 960, 900, "dark", "picture, then clip"),
    ("phone-light.png", 360, 640, "light", "two pictures"),
    ("phone-dark.png", 360, 640, "dark", "one picture, all of it"),
)


def chromium() -> str | None:
    """Where this machine has Chromium, if it has one."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def launch(playwright: Playwright) -> Browser:
    """The browser, without a window, with a profile that is new each time."""
    return playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.argument("folder", type=click.Path(path_type=Path))
def main(bundle: Path, folder: Path) -> None:
    """Take every picture of the page that serves BUNDLE into FOLDER."""
    if chromium() is None:
        raise click.ClickException("expected Chromium, found none: apt-get install chromium")
    questions = {question["name"]: question for question in json.loads((ROOT / "examples/questions.json").read_text())}
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, launch(playwright) as browser:
        for name, width, height, scheme, question in SHOTS:
            view = {"viewport": {"width": width, "height": height}, "color_scheme": scheme, "device_scale_factor": 2}
            with server(bundle) as url, browser.new_context(**view) as context:  # a server that remembers nothing
                page = context.new_page()
                page.goto(url)
                talk(page, questions[question])
                (folder / name).write_bytes(smaller(page.screenshot()))
            print(folder / name)


@contextmanager
def server(bundle: Path) -> Iterator[str]:
    """The address of ernie-serve, while it runs."""
    command = [sys.executable, "-c", SERVE, str(bundle), "--port", "0", "--model-name", "mini-ernie"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise click.ClickException("ernie-serve did not start")
            yield line.split()[-1]
        finally:
            process.terminate()


def talk(page: Page, question: dict[str, Any]) -> None:
    """Ask each user's turn of a conversation, show the grid of its first picture, and check the last answer."""
    asked = [turn["content"] for turn in question["messages"] if turn["role"] == "user"]
    for number, parts in enumerate(asked):
        page.set_input_files("#files", [str(ROOT / part["path"]) for part in parts if "path" in part])
        page.fill("#question", next(part["text"] for part in parts if part["type"] == "text"))
        page.press("#question", "Enter")
        expect(page.locator(".answer").nth(number)).to_have_attribute("aria-busy", "false", timeout=60_000)
    expect(page.locator(".answer .text").last).to_have_text(question["answer"])
    page.locator(".shot").first.dispatch_event("click")
    page.wait_for_timeout(500)  # clips show their first frame by then


def smaller(png: bytes) -> bytes:
    """The same picture in 256 colours, which is all that it has but for the edges of letters."""
    target = BytesIO()
    picture = Image.open(BytesIO(png)).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(target, "PNG", optimize=True)
    return target.getvalue()


if __name__ == "__main__":
    main()
