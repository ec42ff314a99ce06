"""The deliberate differences from transformers' loaders: what it makes of a file, and what we make of it.

docs/reference/media.md lists them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision_operators  # noqa: F401
from numpy.typing import NDArray
from PIL import Image
from transformers.image_utils import load_image
from transformers.video_utils import load_video

from ernie_export.runtime.preprocess.image import ImageProcessor
from ernie_export.runtime.preprocess.video import VideoProcessor
from tests.paths import CASES, MINI, ROOT

DOCS = ROOT / "docs" / "reference" / "media.md"


def both_pictures(name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the pixels of a file as transformers' loader has them and as ours has them."""
    theirs = load_image(str(CASES / name))
    return np.asarray(theirs), np.asarray(ImageProcessor.from_folder(MINI).load(CASES / name))


def test_grey_of_16_bits() -> None:
    theirs, ours = both_pictures("gray16.png")
    with Image.open(CASES / "gray16.png") as opened:
        stored = np.asarray(opened)
    assert (theirs == 255).all()
    assert np.array_equal(ours, np.stack([stored >> 8] * 3, axis=-1)) and ours.min() < 100


def test_transparency_of_a_file() -> None:
    theirs, ours = both_pictures("black_on_transparent.png")
    assert (theirs == 0).all()
    with Image.open(CASES / "black_on_transparent.png") as opened:
        alpha = np.asarray(opened.convert("RGBA"))[..., 3]
    assert (ours[alpha == 0] == 255).all() and (ours[alpha == 255] == 0).all()


def their_clip(name: str, processor: Any) -> tuple[NDArray[np.uint8], list[float]]:
    """Return the frames and stamps that transformers' loader gives, sampled as the processor samples."""
    frames, metadata = load_video(
        str(CASES / name), backend="pyav", sample_indices_fn=processor.video_processor.sample_frames
    )
    return np.asarray(frames), [float(t) for t in metadata.timestamps]


def test_rotation(reference_processor: Callable[[Path], Any]) -> None:
    theirs, _ = their_clip("rot90.mp4", reference_processor(MINI))
    ours = VideoProcessor.from_folder(MINI).load(CASES / "rot90.mp4").frames
    turned = [turns for turns in (1, 2, 3) if np.array_equal(np.rot90(theirs, turns, axes=(1, 2)), ours)]
    assert not np.array_equal(theirs, ours) and turned in ([1], [3])


def test_varying_frame_rate(reference_processor: Callable[[Path], Any]) -> None:
    _, theirs = their_clip("vfr.mp4", reference_processor(MINI))
    ours = VideoProcessor.from_folder(MINI).load(CASES / "vfr.mp4")
    assert np.allclose(np.diff(theirs), np.diff(theirs)[0], atol=0.2)  # as though the rate were constant
    assert np.allclose(ours.timestamps, [0, 1, 2, 3, 4, 4.5])  # when the file shows them
    assert not np.allclose(theirs, ours.timestamps, atol=0.05)


@pytest.mark.parametrize("name", ["a.avif", "a.jp2"])
def test_other_formats_are_the_same(name: str) -> None:
    theirs, ours = both_pictures(name)
    assert np.array_equal(theirs, ours)


def test_every_difference_is_documented() -> None:
    page = DOCS.read_text()
    rows = ("16-bit grey", "transparent picture from a file", "filmed rotated or mirrored", "varying frame rate")
    assert all(f"| a {row}" in page or row in page for row in rows)
