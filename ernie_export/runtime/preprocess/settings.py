"""The settings of both processors, read once into a frozen dataclass; what is not implemented is refused.

A key that the reference ignores is accepted; a key or value that would change its result is refused by name.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ernie_export.common.errors import InvalidFile, InvalidMedia
from ernie_export.common.json_fields import FLOAT32_MAX, JsonObject
from ernie_export.common.processor_settings import NESTED_FILE, PixelBounds, ProcessorKind

CHANNELS = 3
# image_utils.OPENAI_CLIP_MEAN and OPENAI_CLIP_STD: what both processor classes use where a file is silent.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Pillow's filter numbers, as the files write them.
NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = range(6)
MAX_PATCH_SIZE = 1024
MAX_COUNT = 2**31 - 1

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
    bounds: PixelBounds
    resample: int
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_size: int
    merge_size: int

    @classmethod
    def from_json(
        cls, settings: JsonObject, kind: ProcessorKind, filters: Collection[int], temporal_patch_size: int
    ) -> "PixelSettings":
        """Read what the image and the video processor share.

        Args:
            settings: The processor's settings.
            kind: The processor.
            filters: Pillow's numbers of the resampling filters that are implemented for it.
            temporal_patch_size: Frames of one patch, the only value accepted.

        Raises:
            InvalidFile: A value is malformed or would change the result in a way that is not implemented.
        """
        if not settings.flag("do_convert_rgb", default=True):
            raise settings.error("do_convert_rgb", "true")
        for key in ("do_center_crop", "do_pad"):
            if settings.flag(key, default=False):
                raise settings.error(key, "false")
        if settings.get("data_format") not in (None, "channels_first"):
            raise settings.error("data_format", '"channels_first"')
        if settings.get("input_data_format") is not None:
            raise settings.error("input_data_format", "null")
        found = settings.integer("temporal_patch_size", maximum=MAX_COUNT, default=temporal_patch_size)
        if found != temporal_patch_size:
            raise settings.error("temporal_patch_size", str(temporal_patch_size))
        return cls(
            do_resize=settings.flag("do_resize", default=True),
            bounds=PixelBounds.from_json(settings, kind),
            resample=_resampling_filter(settings, filters),
            do_rescale=settings.flag("do_rescale", default=True),
            rescale_factor=settings.positive("rescale_factor", default=1 / 255),
            do_normalize=settings.flag("do_normalize", default=True),
            mean=_channel_values(settings, "image_mean", CLIP_MEAN),
            std=_channel_values(settings, "image_std", CLIP_STD, nonzero=True),
            patch_size=settings.integer("patch_size", maximum=MAX_PATCH_SIZE, default=14),
            merge_size=read_merge_size(settings),
        )

    @property
    def factor(self) -> int:
        """Both sides of a resized image are multiples of this many pixels."""
        return self.patch_size * self.merge_size


def read_merge_size(settings: JsonObject) -> int:
    """Return how many patches one side of a merged patch has."""
    return settings.integer("merge_size", maximum=MAX_PATCH_SIZE, default=2)


def refuse_unknown_keys(settings: JsonObject, extra: Collection[str] = ()) -> None:
    """Raise InvalidFile for a key that is not implemented (shared or `extra`) and not known to change nothing."""
    settings.refuse_unknown({*_SHARED_KEYS, *_INERT_KEYS, *extra})


def processor_settings(folder: Path, kind: ProcessorKind) -> JsonObject:
    """Return the settings of one processor. Raises InvalidFile where no file of `folder` has them."""
    settings = kind.find_settings(folder)
    if settings is None:
        raise InvalidFile(folder, f"{kind.file}, or {kind.section} in {NESTED_FILE}", "neither")
    return settings


def check_media(path: Path, expected: str) -> None:
    """Raise InvalidMedia for what is no regular file (missing, a folder, a pipe that never ends) or is empty.

    `expected` says what the file should be, such as "an image".
    """
    try:
        empty = path.is_file() and path.stat().st_size == 0
        if path.is_file() and not empty:
            return
        found = "an empty file" if empty else "a folder" if path.is_dir() else "no such file"
    except (OSError, ValueError) as e:  # a name too long, or with a zero byte in it
        found = str(e)
    raise InvalidMedia(str(path), expected, found)


def read_media(path: Path, expected: str) -> bytes:
    """Return the bytes of a media file. Raises InvalidMedia as `check_media` does, or where reading fails."""
    check_media(path, expected)
    try:
        return path.read_bytes()
    except OSError as e:
        raise InvalidMedia(str(path), expected, e.strerror or e) from e


def _resampling_filter(settings: JsonObject, filters: Collection[int]) -> int:
    number = settings.get("resample")
    if number is None:
        return BICUBIC
    if type(number) is not int or number not in filters:
        raise settings.error("resample", f"one of {list(filters)}")
    return number


def _channel_values(
    settings: JsonObject, key: str, default: tuple[float, float, float], *, nonzero: bool = False
) -> tuple[float, float, float]:
    """Return one number for each channel; a single number stands for all."""
    value = settings.get(key)
    if value is None:
        return default
    values = value if isinstance(value, list) else [value] * CHANNELS
    numbers = len(values) == CHANNELS and all(type(v) in (int, float) and abs(v) <= FLOAT32_MAX for v in values)
    if not numbers or (nonzero and not all(values)):
        raise settings.error(key, f"{CHANNELS} numbers{', none of them zero' if nonzero else ''}")
    return float(values[0]), float(values[1]), float(values[2])
