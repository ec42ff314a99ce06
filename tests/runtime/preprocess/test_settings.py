"""Settings that would change the result, and that we do not implement, are refused by file and key."""

from pathlib import Path
from typing import Any

import pytest

from ernie_export.common.errors import UserError
from ernie_export.common.json_fields import read_json
from ernie_export.common.processor_settings import IMAGE_PROCESSOR, NESTED_FILE, VIDEO_PROCESSOR, PixelBounds
from ernie_export.runtime.preprocess import Preprocessor
from ernie_export.runtime.preprocess.image import ImageProcessor
from ernie_export.runtime.preprocess.settings import CLIP_MEAN
from ernie_export.runtime.preprocess.video import VideoProcessor

IMAGE_FILE = IMAGE_PROCESSOR.file
VIDEO_FILE = VIDEO_PROCESSOR.file


def fails(folder: Path, *words: str) -> None:
    with pytest.raises(UserError) as error:
        Preprocessor.from_folder(folder)
    line = str(error.value)
    assert "\n" not in line and all(word in line for word in words), line


SHARED = {
    "unknown": ({"sharpen": True}, "sharpen: expected a known key"),
    "rgb": ({"do_convert_rgb": False}, "do_convert_rgb: expected true, found false"),
    "crop": ({"do_center_crop": True}, "do_center_crop: expected false"),
    "pad": ({"do_pad": True}, "do_pad: expected false"),
    "layout": ({"data_format": "channels_last"}, 'data_format: expected "channels_first"'),
    "input-layout": ({"input_data_format": "channels_last"}, "input_data_format: expected null"),
    "flag": ({"do_resize": "yes"}, 'do_resize: expected true or false, found "yes"'),
    "resample": ({"resample": 17}, "resample: expected one of"),
    "size-shape": ({"size": {"height": 5, "width": 5}}, "size: expected"),
    "size-order": ({"size": {"shortest_edge": 9, "longest_edge": 3}}, "size: expected whole numbers"),
    "size-type": ({"size": {"shortest_edge": 1.5, "longest_edge": 3}}, "size: expected whole numbers"),
    "min-pixels": ({"min_pixels": 7}, "min_pixels: expected"),
    "max-pixels": ({"max_pixels": 7}, "max_pixels: expected"),
    "mean": ({"image_mean": [1, 2]}, "image_mean: expected 3 numbers"),
    "std": ({"image_std": [1, 0, 2]}, "image_std: expected 3 numbers, none of them zero"),
    "patch": ({"patch_size": 0}, "patch_size: expected a whole number"),
    "large-patch": ({"patch_size": 2000}, "patch_size: expected a whole number from 1 to 1024, found 2000"),
    "large-size": ({"size": {"shortest_edge": 9, "longest_edge": 10**12}}, "size: expected whole numbers"),
    "large-mean": ({"image_mean": [0, 10**400, 0]}, "image_mean: expected 3 numbers"),
    "no-number": ({"image_std": [float("nan"), 1, 1]}, "image_std: expected 3 numbers"),
    "large-factor": ({"rescale_factor": 10**400}, "rescale_factor: expected a number above 0"),
    "factor": ({"rescale_factor": -1}, "rescale_factor: expected a number above 0"),
    "temporal": ({"temporal_patch_size": 3}, "temporal_patch_size: expected"),
}


@pytest.mark.parametrize("file", [IMAGE_FILE, VIDEO_FILE])
@pytest.mark.parametrize("changes,line", SHARED.values(), ids=SHARED)
def test_refused(folder: Path, change, file: str, changes: dict[str, Any], line: str):
    change(file, **changes)
    fails(folder, file, line)


VIDEO = {
    "bilinear": ({"resample": 2}, "resample: expected one of [3]"),
    "integers": ({"do_rescale": False, "do_normalize": False}, "do_rescale: expected true"),
    "both-rates": ({"fps": 2, "num_frames": 4}, "fps: expected null where num_frames is set"),
    "count": ({"num_frames": 99}, "num_frames: expected min_frames 4 to max_frames 6"),
    "rate": ({"fps": 0}, "fps: expected a number above 0"),
    "font-name": ({"font": "../Roboto-Regular.ttf"}, "font: expected the name of a file"),
    "no-font": ({"font": "Other.ttf"}, "Other.ttf: expected the font"),
}


@pytest.mark.parametrize("changes,line", VIDEO.values(), ids=VIDEO)
def test_refused_for_videos(folder: Path, change, changes: dict[str, Any], line: str):
    change(VIDEO_FILE, **changes)
    fails(folder, line)


def test_a_font_that_is_none(folder: Path):
    (folder / "Roboto-Regular.ttf").write_bytes(b"no font")
    fails(folder, "Roboto-Regular.ttf: expected the font")


@pytest.mark.parametrize("file", [IMAGE_FILE, VIDEO_FILE, "tokenizer.json", "tokenizer_config.json"])
def test_missing_and_damaged_files(folder: Path, file: str):
    text = (folder / file).read_text()
    (folder / file).write_text(text[: len(text) // 2])
    fails(folder, f"{file}: expected JSON")
    (folder / file).write_text("[]")
    fails(folder, f"{file}: expected a JSON object, found []")
    (folder / file).write_text("[" * 100_000)
    fails(folder, f"{file}: expected JSON")
    (folder / file).write_bytes(b"\xff\xfe\x00")
    fails(folder, f"{file}: expected JSON")
    (folder / file).unlink()
    fails(folder, file, "expected" if file in (IMAGE_FILE, VIDEO_FILE) else "expected a JSON file, found no file")


def test_what_a_silent_file_means(folder: Path):
    """The classes' own defaults."""
    for file in (IMAGE_FILE, VIDEO_FILE):
        (folder / file).write_text('{"image_mean": null}')
    image, video = ImageProcessor.from_folder(folder), VideoProcessor.from_folder(folder)
    assert image.settings.bounds == PixelBounds(3136, 4_842_768)
    assert video.settings.bounds == PixelBounds(234_416, 937_664)
    assert image.settings.mean == video.settings.mean == CLIP_MEAN
    assert (video.min_frames, video.max_frames, video.sample, video.fps, video.num_frames) == (
        16,
        180,
        True,
        None,
        None,
    )
    assert video.font == folder / "Roboto-Regular.ttf" and image.settings.factor == 28


def test_repeated_bounds_are_accepted(folder: Path, change):
    size = read_json(folder / IMAGE_FILE)["size"]
    change(IMAGE_FILE, min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"])
    assert ImageProcessor.from_folder(folder).settings.bounds.maximum == size["longest_edge"]


def test_the_nested_file_wins(folder: Path):
    (folder / NESTED_FILE).write_text('{"image_processor": {"patch_size": 7}}')
    assert ImageProcessor.from_folder(folder).settings.patch_size == 7
    (folder / NESTED_FILE).write_text('{"image_processor": 3}')
    fails(folder, f"{NESTED_FILE}: image_processor: expected an object, found 3")
