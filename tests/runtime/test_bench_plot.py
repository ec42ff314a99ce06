"""The plot of a benchmark: a whole PNG of its size, whatever the figures; an older one stays until it is there."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ernie_export.common.errors import UserError
from ernie_export.runtime.bench.measure import BatchTimes, RequestTimes
from ernie_export.runtime.bench.plot import SIZE, draw, stretched
from tests.paths import PROGRAMS

# Draws in a process that has imported nothing else; exits with 1 if a window system was asked for.
CAPTIONS = ["a bundle", "workload: " + "words " * 100, "machine: $ _ { of another world"]


def answers(batch: int, tokens: int, seed: int = 0) -> BatchTimes:
    random = np.random.default_rng(seed)
    times = [tuple(np.cumsum(random.uniform(0.001, 0.02 * batch, tokens)).tolist()) for _ in range(batch)]
    return BatchTimes(batch, (tuple(RequestTimes(10, time) for time in times),))


@pytest.mark.parametrize(
    "found",
    [
        (answers(1, 2),),
        (answers(8, 64), answers(1, 64)),
        tuple(answers(2**n, 9) for n in range(8)),
        (BatchTimes(2, ((RequestTimes(10, (0.1, 0.2)), RequestTimes(10, (0.3, 0.4))),)),),
    ],
    ids=["one interval", "two batches", "more batches than colours", "never decoding together"],
)
def test_a_png_of_its_size(tmp_path, found):
    path = tmp_path / "out.png"
    draw(path, found, CAPTIONS)
    assert list(tmp_path.iterdir()) == [path]
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", SIZE)
        pixels = np.asarray(image.convert("L"))
    halves = pixels[100:650, :800], pixels[100:650, 800:]
    assert all(0.005 < (half < 200).mean() < 0.3 for half in halves)  # ink on both, and paper


def test_other_figures_make_another_picture(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw(tmp_path / f"{name}.png", (answers(4, 16, seed),), CAPTIONS)
    a, b, c = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abc")
    assert (a == b).all() and not (a == c).all()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_an_older_plot_stays_until_the_new_one_is_whole(tmp_path, monkeypatch, error):
    path = tmp_path / "out.png"
    path.write_bytes(b"older")

    def fail(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt) as raised:
        draw(path, (answers(1, 4),), CAPTIONS)
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]
    assert isinstance(error, KeyboardInterrupt) or f"{path}: cannot write" in str(raised.value)


def test_no_link_beside_the_plot_is_followed(tmp_path):
    """Others may write to the folder, and know this process's number."""
    victim = tmp_path / "victim"
    victim.write_text("kept")
    folder = tmp_path / "shared"
    folder.mkdir()
    for name in ("out.png", f".out.png.partial-{os.getpid()}"):
        (folder / name).symlink_to(victim)
    draw(folder / "out.png", (answers(1, 4),), CAPTIONS)
    assert victim.read_text() == "kept" and not (folder / "out.png").is_symlink()


def test_the_plot_has_the_mode_of_other_files(tmp_path):
    draw(tmp_path / "out.png", (answers(1, 4),), CAPTIONS)
    (tmp_path / "other").touch()
    assert (tmp_path / "out.png").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_caption_is_no_formula(tmp_path):
    """The name of a bundle's folder, as matplotlib would read it."""
    draw(tmp_path / "out.png", (answers(1, 4),), ["a$\\frac$b", "c_{$ $"])
    assert (tmp_path / "out.png").exists()


def test_no_window_system_is_asked_for(tmp_path):
    done = subprocess.run([sys.executable, PROGRAMS / "draw_plot.py"], cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "out.png").exists()


def test_the_tail_is_stretched():
    assert [float(stretched(percentile)) for percentile in (0, 90, 99, 99.9)] == pytest.approx([0, 1, 2, 3])
