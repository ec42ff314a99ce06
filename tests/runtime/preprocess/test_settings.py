"""Settings that would change the result, and that we do not implement, are refused by file and key."""

import json
from pathlib import Path
from typing import Any

import pytest

from ernie_export.common.errors import UserError
from ernie_export.common.json_fields import read_json
from ernie_export.common.processor_settings import IMAGE_FILE, NESTED_FILE, VIDEO_FILE, PixelBounds
from ernie_export.runtime.preprocess import Preprocessor
from ernie_export.runtime.preprocess.image import ImageProcessor
from ernie_export.runtime.preprocess.settings import CLIP_MEAN
from ernie_export.runtime.preprocess.video import VideoProcessor


def fails(folder: Path, *words: str) -> None:
    with pytest.raises(UserError) as error:
        Preprocessor.from_folder(folder)
    line = str(error.value)
    assert "\n" not in line and all(word in line for word in words), line


SHARED = {
    "crop": ({"do_center_crop": True}, "do_center_crop: expected false, or a crop_size"),
    "property": ({"backend": "pil"}, "backend: expected no such key"),
    "null-mean": ({"image_mean": None}, "image_mean: expected a value, found null"),
    "null-filter": ({"resample": None}, "resample: expected a value, found null"),
    "null-patch": ({"patch_size": None}, "patch_size: expected a value, found null"),
    "null-frames": ({"temporal_patch_size": None}, "temporal_patch_size: expected a whole number"),
    "flag": ({"do_resize": "yes"}, 'do_resize: expected true or false, found "yes"'),
    "resample": ({"resample": 17}, "resample: expected one of"),
    "size-shape": ({"size": {"height": 5, "width": 5}}, "size: expected"),
    "size-order": ({"size": {"shortest_edge": 9, "longest_edge": 3}}, "size: expected whole numbers"),
    "size-type": ({"size": {"shortest_edge": 1.5, "longest_edge": 3}}, "size: expected whole numbers"),
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


IMAGE = {
    "rgb": ({"do_convert_rgb": False}, "do_convert_rgb: expected true, found false"),
    "null-size": ({"size": None}, "size: expected a value, found null"),
    "another-class": (
        {"image_processor_type": "Qwen2VLImageProcessor"},
        "image_processor_type: expected Ernie4_5_VLMoe",
    ),
    "another-processor": ({"processor_class": "Qwen2VLProcessor"}, "processor_class: expected Ernie4_5_VLMoeProcessor"),
}


@pytest.mark.parametrize("changes,line", IMAGE.values(), ids=IMAGE)
def test_refused_for_images(folder: Path, change, changes: dict[str, Any], line: str):
    change(IMAGE_FILE, **changes)
    fails(folder, line)


VIDEO = {
    "layout": ({"input_data_format": "channels_first"}, "input_data_format: expected null or channels_last"),
    "another-class": (
        {"video_processor_type": "Qwen2VLVideoProcessor"},
        "video_processor_type: expected Ernie4_5_VLMoe",
    ),
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
        (folder / file).write_text("{}")
    image = ImageProcessor.from_folder(folder)
    video = VideoProcessor.from_folder(folder)
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


INERT = {
    "bounds": {"min_pixels": 7, "max_pixels": 9},
    "tools": {"use_fast": True, "_valid_processor_keys": ["size"], "model_input_names": ["pixel_values"]},
    "unknown": {"sharpen": True, "auto_map": {"AutoImageProcessor": "a.B"}},
    "others": {"do_pad": True, "pad_size": {"height": 9, "width": 9}, "data_format": "channels_last", "device": "cpu"},
    "crop": {"do_center_crop": True, "crop_size": {"height": 9, "width": 9}},
}


@pytest.mark.parametrize("file", [IMAGE_FILE, VIDEO_FILE])
@pytest.mark.parametrize("keys", INERT.values(), ids=INERT)
def test_what_changes_nothing_is_accepted_and_named(folder: Path, change, file: str, keys: dict[str, Any]):
    before = Preprocessor.from_folder(folder)
    assert before.images.settings.ignored == before.videos.settings.ignored == ()
    change(file, **keys)
    after = Preprocessor.from_folder(folder)
    ignored = (after.images if file == IMAGE_FILE else after.videos).settings.ignored
    assert sorted(ignored) == sorted((folder / file, key) for key in keys)
    assert (after.images.settings, after.videos.settings) == (before.images.settings, before.videos.settings)


def test_a_null_flag_is_off(folder: Path, change):
    """The class takes null for false, not for its default."""
    change(IMAGE_FILE, do_normalize=None)
    change(VIDEO_FILE, draw_on_frames=None, do_sample_frames=None, do_convert_rgb=None)
    processor = Preprocessor.from_folder(folder)
    assert not processor.images.settings.do_normalize
    assert processor.videos.font is None and not processor.videos.sample


def test_a_video_processor_may_share_the_image_processor_s_file(folder: Path, change):
    (folder / VIDEO_FILE).unlink()
    fails(folder, VIDEO_FILE, "found neither")  # the class refuses a temporal_patch_size of 1
    settings = read_json(folder / IMAGE_FILE)
    del settings["temporal_patch_size"]
    (folder / IMAGE_FILE).write_text(json.dumps(settings))
    assert VideoProcessor.from_folder(folder).settings.bounds == ImageProcessor.from_folder(folder).settings.bounds


def test_the_nested_file_wins(folder: Path):
    (folder / NESTED_FILE).write_text('{"image_processor": {"patch_size": 7}}')
    assert ImageProcessor.from_folder(folder).settings.patch_size == 7
    (folder / NESTED_FILE).write_text('{"image_processor": 3}')
    fails(folder, f"{NESTED_FILE}: image_processor: expected an object, found 3")
