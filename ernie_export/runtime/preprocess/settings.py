"""What the checkpoint's processor files say, read once into frozen dataclasses; what we do not implement is refused.

A processor is described either in one nested file (`processor_config.json`, the newer form, which wins) or in its own
file. A key that the reference ignores is accepted; a key or value that would change its result is refused by name.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_export.common.errors import InvalidMedia, UserError

LARGEST = 3.4028234e38  # of float32
MOST_PIXELS = 2**27  # that a checkpoint may ask a picture to be resized to: 1.5 GiB as float32
NESTED_FILE = "processor_config.json"
CHANNELS = 3
# image_utils.OPENAI_CLIP_MEAN and OPENAI_CLIP_STD: what both processor classes use where a file is silent.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Pillow's filter numbers, as the files write them.
NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = range(6)

_SHARED_KEYS = {
    "do_convert_rgb", "do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
    "image_std", "patch_size", "merge_size", "temporal_patch_size", "do_center_crop", "do_pad", "data_format",
    "input_data_format", "min_pixels", "max_pixels",
}  # fmt: skip
# Written by save_pretrained, read by nothing that changes a pixel.
_INERT_KEYS = {
    "auto_map", "crop_size", "default_to_square", "device", "disable_grouping", "feature_extractor_type",
    "image_processor_type", "image_seq_length", "pad_size", "processor_class", "return_metadata", "return_tensors",
    "video_metadata", "video_processor_type",
}  # fmt: skip


@dataclass(frozen=True)
class PixelSettings:
    """How decoded pixels become patches. Sizes in pixels, `mean` and `std` in units of the rescaled pixel values."""

    do_resize: bool
    min_pixels: int
    max_pixels: int
    resample: int
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_size: int
    merge_size: int

    @property
    def factor(self) -> int:
        """Both sides of a resized picture are multiples of this many pixels."""
        return self.patch_size * self.merge_size


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError where the file is missing, is not JSON or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror or e}") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: expected JSON, found {e}") from e
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def check_media(path: Path, kind: str) -> None:
    """Refuse what is no regular file (missing, a folder, a pipe that never ends) or is empty, as a UserError."""
    try:
        empty = path.is_file() and path.stat().st_size == 0
        found = "an empty file" if empty else "a folder" if path.is_dir() else "no such file"
        if path.is_file() and not empty:
            return
    except (OSError, ValueError) as e:  # a name too long, or with a zero byte in it
        found = str(e)
    raise InvalidMedia(str(path), kind, found)


def read_media(path: Path, kind: str) -> bytes:
    """The bytes of a media file. Raises UserError as `check_media` does, or where reading fails."""
    check_media(path, kind)
    try:
        return path.read_bytes()
    except OSError as e:
        raise InvalidMedia(str(path), kind, e.strerror or e) from e


def processor_section(folder: Path, section: str, filename: str) -> tuple[Path, dict[str, Any]]:
    """The settings of one processor with the file that holds them, nested form first.

    Raises UserError where neither file has them.
    """
    nested = folder / NESTED_FILE
    if nested.is_file():
        value = read_json(nested).get(section)
        if value is not None:
            if not isinstance(value, dict):
                raise UserError(f"{nested}: {section}: expected an object, found {type(value).__name__}")
            return nested, value
    if not (folder / filename).is_file():
        raise UserError(f"{folder}: expected {filename}, or {section} in {NESTED_FILE}; found neither")
    return folder / filename, read_json(folder / filename)


class Section:
    """Typed reads from one settings object; every complaint names the file and the key."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self._values = values

    def fail(self, key: str, expected: str) -> UserError:
        return UserError(f"{self.path}: {key}: expected {expected}, found {json.dumps(self._values.get(key))}")

    def check_keys(self, extra: set[str]) -> None:
        """Refuse any key that is neither implemented (shared or `extra`) nor known to change nothing."""
        for key in self._values:
            if key not in _SHARED_KEYS | _INERT_KEYS | extra:
                raise UserError(f"{self.path}: {key}: expected a known setting, found an unknown one")

    def get(self, key: str, default: Any) -> Any:
        value = self._values.get(key)
        return default if value is None else value  # the reference reads null as "use the default"

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def whole(self, key: str, default: int | None, most: int = 2**31 - 1) -> int | None:
        value = self.get(key, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.fail(key, f"a whole number from 1 to {most}")
        return value

    def number(self, key: str, default: float | None) -> float | None:
        value = self.get(key, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST:
            raise self.fail(key, "a positive number")
        return value

    def triple(self, key: str, default: tuple[float, float, float], nonzero: bool) -> tuple[float, float, float]:
        value = self.get(key, default)
        values = [value] * CHANNELS if isinstance(value, int | float) else value
        if (
            not isinstance(values, list | tuple)
            or len(values) != CHANNELS
            or any(isinstance(v, bool) or not isinstance(v, int | float) or not abs(v) <= LARGEST for v in values)
            or (nonzero and not all(values))
        ):
            raise self.fail(key, f"{CHANNELS} numbers{', none of them zero' if nonzero else ''}")
        return (float(values[0]), float(values[1]), float(values[2]))

    def pixels(self, default_size: tuple[int, int], resamples: tuple[int, ...]) -> PixelSettings:
        """Read what images and videos share; `default_size` is the least and the greatest number of pixels."""
        if not self.flag("do_convert_rgb", True):
            raise self.fail("do_convert_rgb", "true")
        for key in ("do_center_crop", "do_pad"):
            if self.flag(key, False):
                raise self.fail(key, "false")
        if self.get("data_format", "channels_first") != "channels_first":
            raise self.fail("data_format", '"channels_first"')
        if self.get("input_data_format", None) is not None:
            raise self.fail("input_data_format", "null")
        resample = self.get("resample", BICUBIC)
        if isinstance(resample, bool) or resample not in resamples:
            raise self.fail("resample", f"one of {list(resamples)}")
        low, high = self._size(default_size)
        patch, merge = self.whole("patch_size", 14, 1024), self.whole("merge_size", 2, 1024)
        factor = self.number("rescale_factor", 1 / 255)
        assert patch is not None and merge is not None and factor is not None  # they have defaults
        return PixelSettings(
            do_resize=self.flag("do_resize", True),
            min_pixels=low,
            max_pixels=high,
            resample=resample,
            do_rescale=self.flag("do_rescale", True),
            rescale_factor=factor,
            do_normalize=self.flag("do_normalize", True),
            mean=self.triple("image_mean", CLIP_MEAN, nonzero=False),
            std=self.triple("image_std", CLIP_STD, nonzero=True),
            patch_size=patch,
            merge_size=merge,
        )

    def _size(self, default: tuple[int, int]) -> tuple[int, int]:
        size = self.get("size", {"shortest_edge": default[0], "longest_edge": default[1]})
        # The names are historical: the numbers bound the count of pixels, not an edge.
        if not isinstance(size, dict) or {k for k, v in size.items() if v is not None} != {
            "shortest_edge",
            "longest_edge",
        }:
            raise self.fail("size", '{"shortest_edge": least pixels, "longest_edge": most pixels}')
        low, high = size["shortest_edge"], size["longest_edge"]
        whole = type(low) is int and type(high) is int
        if not whole or not 0 < low <= high <= MOST_PIXELS:
            raise self.fail("size", f"whole numbers with 0 < shortest_edge <= longest_edge <= {MOST_PIXELS}")
        # Older files repeat the bounds under these names; the reference reads only `size`.
        for key, value in (("min_pixels", low), ("max_pixels", high)):
            if self.get(key, value) != value:
                raise self.fail(key, f"{value}, as in size")
        return low, high
