"""Pictures that cannot be read, each refused in one line; the layout of patches."""

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ernie_export.common.errors import UserError
from ernie_export.runtime.preprocess.image import ImageProcessor

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))


def encoded(form: str) -> bytes:
    stream = io.BytesIO()
    PICTURE.save(stream, form)
    return stream.getvalue()


FORMS = {form: encoded(form) for form in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")}


@pytest.fixture(scope="module")
def processor(mini: Path) -> ImageProcessor:
    return ImageProcessor.from_folder(mini)


def refused(processor: ImageProcessor, source, *words: str) -> str:
    with pytest.raises(UserError) as error:
        processor.load(source)
    line = str(error.value)
    assert "\n" not in line and all(word in line for word in words), line
    return line


def test_no_file(processor: ImageProcessor, tmp_path: Path):
    refused(processor, tmp_path / "none.png", "none.png", "no such file")
    refused(processor, tmp_path, "a folder")
    refused(processor, "a\x00b.png", "expected an image")
    refused(processor, "n" * 5000, "expected an image")


def test_an_empty_file(processor: ImageProcessor, tmp_path: Path):
    path = tmp_path / "empty.png"
    path.touch()
    refused(processor, path, "empty.png", "an empty file")
    refused(processor, b"", "an empty file")


def test_no_image(processor: ImageProcessor, tmp_path: Path):
    path = tmp_path / "text.png"
    path.write_text("not a picture")
    refused(processor, path, "text.png", "a file of another format")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_truncated_image(processor: ImageProcessor, tmp_path: Path, form: str):
    path = tmp_path / "half"
    path.write_bytes(FORMS[form][: len(FORMS[form]) // 2])
    refused(processor, path, "half", "found")


def png_header(width: int, height: int) -> bytes:
    """A well-formed PNG of that size whose pixel data is missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_460, 13_000, 30_000, 2_000_000_000])
@pytest.mark.filterwarnings("error")
def test_a_decompression_bomb(processor: ImageProcessor, side: int):
    """Above Pillow's warning, its error, and its integers: refused from the header, with nothing else printed."""
    refused(processor, png_header(side, side), "found")


def test_our_own_pixel_limit(mini: Path):
    limited = replace(ImageProcessor.from_folder(mini), max_source_pixels=2_000)
    refused(limited, PICTURE, "at most 2000 pixels", "56×40")
    refused(limited, FORMS["PNG"], "at most 2000 pixels")


@pytest.mark.parametrize("size", [(1, 201), (402, 2)])
def test_an_aspect_ratio_above_200(processor: ImageProcessor, size: tuple[int, int]):
    with pytest.raises(UserError, match=r"image 2: expected an aspect ratio of at most 200, found \d+×\d+"):
        processor([PICTURE, Image.new("RGB", size)])
    assert len(processor([Image.new("RGB", (1, 200))])[0])


CHANGES = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_random_bytes(data: bytes):
    damaged(data)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(FORMS)),
    st.integers(0, 10_000),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255))),
)
def test_damaged_images(form: str, length: int, changes: list[tuple[int, int]]):
    data = bytearray(FORMS[form][: max(length % (len(FORMS[form]) + 1), 1)])
    for place, value in changes:
        data[place % len(data)] = value
    damaged(bytes(data))


def damaged(data: bytes) -> None:
    """Either a picture or one line: never another exception."""
    processor = ImageProcessor.from_folder(Path(__file__).parents[3] / "examples" / "mini-ernie")
    try:
        picture = processor.load(data)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert picture.mode == "RGB"


def test_patches_are_in_merge_block_order(processor: ImageProcessor):
    """Each patch of a picture is one grey value: 14×14 patches, 2×2 blocks, row by row."""
    greys = np.arange(4 * 6, dtype=np.uint8).reshape(4, 6)
    picture = Image.fromarray(greys.repeat(14, 0).repeat(14, 1)).convert("RGB")
    pixels, grid = processor([picture])
    assert grid.tolist() == [[1, 4, 6]]
    order = [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, 12, 13, 18, 19, 14, 15, 20, 21, 16, 17, 22, 23]
    channels = pixels.reshape(24, 3, 196)
    assert (channels == channels[:, :, :1]).all()
    for channel in range(3):
        expected = (np.array(order) / 255 - processor.settings.mean[channel]) / processor.settings.std[channel]
        np.testing.assert_allclose(channels[:, channel, 0], expected, rtol=1e-5)


def test_no_images(processor: ImageProcessor):
    pixels, grid = processor([])
    assert pixels.shape == (0, 588) and grid.shape == (0, 3)
