"""Pictures, bit for bit against Ernie4_5_VLMoeImageProcessorPil."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ernie_export.common.errors import InvalidMedia
from ernie_export.runtime.preprocess.image import ImageProcessor

DEFAULT_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 6177}


@pytest.fixture(scope="module")
def reference():
    from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import Ernie4_5_VLMoeImageProcessorPil

    return Ernie4_5_VLMoeImageProcessorPil.from_pretrained


def noise(rng: np.random.Generator, mode: str, largest: int = 300) -> Image.Image:
    """A random picture: coarse blocks under fine noise, so that both resizing and rounding are exercised."""
    height, width = (int(n) for n in rng.integers(4, largest, 2))
    blocks = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 4)).repeat(16, 0).repeat(16, 1)[:height, :width]
    pixels = (blocks * 0.7 + rng.integers(0, 77, blocks.shape)).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))
    if mode == "I":
        return Image.fromarray(rng.integers(-100, 70000, (height, width), dtype=np.int32))
    if mode == "F":
        return Image.fromarray(rng.uniform(-50, 300, (height, width)).astype(np.float32))
    if mode in ("P", "P with one clear colour", "P with alphas"):
        picture = Image.fromarray(pixels[..., :3]).quantize(64, Image.Quantize.FASTOCTREE)
        if mode == "P with one clear colour":
            picture.info["transparency"] = 3
        if mode == "P with alphas":
            picture.info["transparency"] = bytes(rng.integers(0, 256, 64, dtype=np.uint8))
        return picture
    if mode == "RGB with a clear colour":
        picture = Image.fromarray(pixels[..., :3] // 64 * 64)
        picture.info["transparency"] = picture.getpixel((0, 0))
        return picture
    return Image.fromarray(pixels, "RGBA").convert(mode)


MODES = [
    "RGB", "RGBA", "L", "LA", "P", "P with one clear colour", "P with alphas", "RGB with a clear colour", "CMYK",
    "I;16", "I", "F", "1", "YCbCr", "HSV", "LAB", "PA", "RGBX", "La", "RGBa",
]  # fmt: skip
# What a file of each mode is written as; a format that would change the mode proves nothing.
SUFFIXES = {"CMYK": ".tif", "I": ".tif", "F": ".tif", "YCbCr": ".tif", "LAB": ".tif", "RGBX": ".tif"}
IN_FILES = [mode for mode in MODES if mode not in ("HSV", "PA", "La", "RGBa")]


TRANSPARENT = ("RGBA", "LA", "P with one clear colour", "P with alphas", "RGB with a clear colour")


def as_intended(path: Path, mode: str) -> str | Image.Image:
    """What the reference is given for a file of a mode: the file, but for two deliberate differences.

    Its loader drops transparency from a file, and not from a Pillow image; and it clips grey of 16 bits to white, where
    Baidu's own code scales it.
    """
    if mode in TRANSPARENT:
        return Image.open(path)
    if mode == "I;16":
        return Image.fromarray((np.asarray(Image.open(path)) >> 8).astype(np.uint8))
    return str(path)


def assert_same(ours, theirs) -> None:
    pixels, grid = ours
    assert pixels.dtype == theirs["pixel_values"].dtype == np.float32
    assert grid.dtype == theirs["image_grid_thw"].dtype == np.int64
    assert np.array_equal(grid, theirs["image_grid_thw"])
    assert np.array_equal(pixels, theirs["pixel_values"])


@pytest.mark.parametrize("mode", MODES)
def test_a_pillow_image(mini: Path, reference, mode: str):
    ours = ImageProcessor.from_folder(mini)
    theirs = reference(mini)
    for seed in range(8):
        picture = noise(np.random.default_rng(seed), mode)
        if mode == "I;16":
            grey = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            assert_same(ours([ours.load(picture)]), theirs([grey], return_tensors="np"))
        elif mode not in ("La", "RGBa"):  # Image.convert refuses these two to RGB: no reference
            assert_same(ours([ours.load(picture)]), theirs([picture], return_tensors="np"))
            assert_same(ours([picture]), theirs([picture], return_tensors="np"))


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("mode", IN_FILES)
def test_a_file(mini: Path, reference, tmp_path: Path, mode: str):
    ours = ImageProcessor.from_folder(mini)
    theirs = reference(mini)
    for seed in range(6):
        path = tmp_path / f"{seed}{SUFFIXES.get(mode, '.png')}"
        noise(np.random.default_rng(100 + seed), mode).save(path)
        expected = theirs([as_intended(path, mode)], return_tensors="np")
        assert_same(ours([ours.load(path)]), expected)
        assert_same(ours([ours.load(path.read_bytes())]), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif_turns_a_file_but_not_a_pillow_image(mini: Path, reference, tmp_path: Path, orientation: int, suffix: str):
    ours = ImageProcessor.from_folder(mini)
    theirs = reference(mini)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned{suffix}"
    noise(np.random.default_rng(orientation), "RGB").save(path, exif=exif)
    from_file = ours([ours.load(path)])
    assert_same(from_file, theirs([str(path)], return_tensors="np"))
    with Image.open(path) as picture:
        as_it_lies = ours([ours.load(picture)])
        assert_same(as_it_lies, theirs([picture], return_tensors="np"))
    if orientation > 1:
        assert not np.array_equal(from_file[0], as_it_lies[0])


def test_several_images_of_unequal_size(mini: Path, reference):
    ours = ImageProcessor.from_folder(mini)
    theirs = reference(mini)
    pictures = [noise(np.random.default_rng(seed), mode) for seed, mode in enumerate(["RGB", "L", "RGBA", "P"])]
    assert_same(ours(pictures), theirs(pictures, return_tensors="np"))


@pytest.mark.parametrize("seed", range(12))
def test_the_default_sizes(altered, reference, seed: int):
    folder = altered(image={"size": DEFAULT_SIZE})
    ours = ImageProcessor.from_folder(folder)
    theirs = reference(folder)
    picture = noise(np.random.default_rng(seed), "RGB", largest=700)
    assert_same(ours([picture]), theirs([picture], return_tensors="np"))


def test_a_picture_above_the_default_limit(altered, reference):
    folder = altered(image={"size": DEFAULT_SIZE})
    ours = ImageProcessor.from_folder(folder)
    theirs = reference(folder)
    picture = noise(np.random.default_rng(1), "RGB", largest=200).resize((3000, 1700))
    assert_same(ours([picture]), theirs([picture], return_tensors="np"))
    assert 24_000 < len(ours([picture])[0]) <= 28 * 28 * 6177 // 14**2


@pytest.mark.slow
def test_a_picture_that_pillow_takes_for_a_bomb(altered, reference, tmp_path: Path):
    """Of 108 million pixels: refused by default with the number, and read as the reference reads it once allowed."""
    folder = altered(image={"size": DEFAULT_SIZE})
    picture = Image.new("RGB", (12_000, 9_000), "white")
    picture.paste((200, 30, 40), (3_000, 2_000, 9_001, 5_003))
    picture.save(tmp_path / "large.png", compress_level=1)
    with pytest.raises(InvalidMedia, match="expected at most 89478485 pixels, found 12000×9000"):
        ImageProcessor.from_folder(folder).load(tmp_path / "large.png")
    ours = replace(ImageProcessor.from_folder(folder), max_source_pixels=12_000 * 9_000)
    found = ours([ours.load(tmp_path / "large.png")])
    assert_same(found, reference(folder)([picture], return_tensors="np"))
    assert found[1].tolist() == [[1, 136, 180]]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"resample": number}, id=f"resample-{number}") for number in range(6)
    ]
    + [
        pytest.param({"do_rescale": False}, id="no-rescale"),
        pytest.param({"do_normalize": False}, id="no-normalize"),
        pytest.param({"do_rescale": False, "do_normalize": False}, id="neither"),
        pytest.param({"rescale_factor": 1 / 127.5}, id="rescale-factor"),
        pytest.param({"image_mean": 0.5, "image_std": 0.5}, id="one-mean"),
        pytest.param({"image_mean": [0.0, 0.1, 0.2], "image_std": [1.0, 0.9, 0.3]}, id="other-means"),
        pytest.param({"patch_size": 16, "merge_size": 3}, id="patch-16-merge-3"),
        pytest.param({"size": {"shortest_edge": 784, "longest_edge": 2352}}, id="tiny"),
        pytest.param({"do_center_crop": False, "crop_size": {"height": 9, "width": 9}, "device": "cpu"}, id="inert"),
    ],
)  # fmt: skip
def test_other_settings(altered, reference, changes: dict):
    folder = altered(image=changes)
    ours = ImageProcessor.from_folder(folder)
    theirs = reference(folder)
    for seed in range(3):
        picture = noise(np.random.default_rng(seed), "RGB")
        assert_same(ours([picture]), theirs([picture], return_tensors="np"))


def test_without_resizing(altered, reference):
    folder = altered(image={"do_resize": False})
    picture = noise(np.random.default_rng(1), "RGB").resize((84, 56))
    assert_same(ImageProcessor.from_folder(folder)([picture]), reference(folder)([picture], return_tensors="np"))
