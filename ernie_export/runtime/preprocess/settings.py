"""The settings of both processors, read once into a frozen dataclass; what is not implemented is refused.

A key that changes what the reference's class computes is honoured or refused by name; one that changes nothing is
accepted, and noted in `PixelSettings.ignored` unless it is what the class itself writes. A flag that is null is off, as
in the class, and not at its default.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ernie_export.common.errors import InvalidFile, InvalidMedia
from ernie_export.common.json_fields import FLOAT32_MAX, JsonObject, one_line, read_json
from ernie_export.common.processor_settings import NESTED_FILE, PixelBounds, ProcessorKind

CHANNELS = 3
# image_utils.OPENAI_CLIP_MEAN and OPENAI_CLIP_STD: what both processor classes use where a file is silent.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Pillow's filter numbers, as the files write them.
NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = range(6)
MAX_PATCH_SIZE = 1024
MAX_COUNT = 2**31 - 1
LONGEST_PATH = 150  # characters of a path in an error, which has at most 200

# Keys without effect on a pixel, and the values with which the class writes them.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "crop_size": (None,),
    "data_format": (None, "channels_first"),
    "default_to_square": (None, True, False),
    "device": (None,),
    "disable_grouping": (None,),
    "do_center_crop": (None, False),
    "do_pad": (None, False),
    "image_seq_length": (None,),
    "pad_size": (None,),
    "return_metadata": (None, False),
    "return_tensors": (None,),
    "video_metadata": (None,),
}
IMAGE_CLASSES = tuple(
    f"Ernie4_5_VL{name}ImageProcessor{backend}" for name in ("Moe", "_Moe") for backend in ("", "Fast", "Pil")
)
VIDEO_CLASSES = ("Ernie4_5_VLMoeVideoProcessor", "Ernie4_5_VL_MoeVideoProcessor")
PROCESSOR_CLASSES = ("Ernie4_5_VLMoeProcessor",)


@dataclass(frozen=True)
class PixelSettings:
    """How decoded pixels become patches. Sizes in pixels, `mean` and `std` in units of the rescaled pixel values.

    Attributes:
        ignored: File and key of what changes nothing and is not the class's own.
    """

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
    ignored: tuple[tuple[Path, str], ...] = field(default=(), compare=False)

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
        if "backend" in settings:  # a property of the class, which sets each key as an attribute
            raise settings.error("backend", "no such key")
        if settings.members.get("do_center_crop") and settings.members.get("crop_size") is None:  # all that is checked
            raise settings.error("do_center_crop", "false, or a crop_size")
        found = (
            settings.integer("temporal_patch_size", maximum=MAX_COUNT) if "temporal_patch_size" in settings else None
        )
        if found not in (None, temporal_patch_size):
            raise settings.error("temporal_patch_size", str(temporal_patch_size))
        do_resize = flag(settings, "do_resize", default=True)
        do_rescale = flag(settings, "do_rescale", default=True)
        do_normalize = flag(settings, "do_normalize", default=True)
        used = {
            "resample": do_resize,
            "rescale_factor": do_rescale,
            "image_mean": do_normalize,
            "image_std": do_normalize,
        }
        for key in (*(key for key, is_used in used.items() if is_used), "patch_size", "merge_size"):
            if key in settings and settings.get(key) is None:
                raise settings.error(key, "a value")
        return cls(
            do_resize=do_resize,
            bounds=PixelBounds.from_json(settings, kind),
            resample=_resampling_filter(settings, filters),
            do_rescale=do_rescale,
            rescale_factor=settings.positive("rescale_factor", default=1 / 255),
            do_normalize=do_normalize,
            mean=_channel_values(settings, "image_mean", CLIP_MEAN),
            std=_channel_values(settings, "image_std", CLIP_STD, nonzero=True),
            patch_size=settings.integer("patch_size", maximum=MAX_PATCH_SIZE, default=14),
            merge_size=read_merge_size(settings),
        )

    def noting_ignored(self, settings: JsonObject) -> "PixelSettings":
        """Return the settings with the keys of `settings` that nobody has read, and that nothing depends on."""
        usual = {key for key, values in _WITHOUT_EFFECT.items() if settings.members.get(key) in values}
        settings.ignore_unknown(usual | {"processor_class"})
        return replace(self, ignored=tuple(settings.ignored))

    @property
    def factor(self) -> int:
        """Both sides of a resized image are multiples of this many pixels."""
        return self.patch_size * self.merge_size


def read_merge_size(settings: JsonObject) -> int:
    """Return how many patches one side of a merged patch has."""
    return settings.integer("merge_size", maximum=MAX_PATCH_SIZE, default=2)


def flag(settings: JsonObject, key: str, *, default: bool) -> bool:
    """Return a flag: `default` where it is missing, and false where it is null, as the class has it."""
    if key not in settings:
        return default
    return settings.optional(key, settings.flag) or False


def expect_class(settings: JsonObject, key: str, names: Collection[str]) -> None:
    """Raise InvalidFile where the settings are those of another class, which would compute something else."""
    settings.optional(key, lambda key: settings.choice(key, tuple(names)))


def expect_processor_class(folder: Path, images: JsonObject) -> None:
    """Raise InvalidFile where the processor as a whole is another class's; `images`: the image processor's settings."""
    path = folder / NESTED_FILE
    nested = JsonObject(path, "", read_json(path) if path.is_file() else {})
    named_there = nested.get("processor_class") is not None
    expect_class(nested if named_there else images, "processor_class", PROCESSOR_CLASSES)


def processor_settings(folder: Path, kind: ProcessorKind) -> JsonObject:
    """Return the settings of one processor. Raises InvalidFile where no file of `folder` has them."""
    settings = kind.find_settings(folder)
    if settings is None:
        raise InvalidFile(folder, f"{kind.files[0]}, or {kind.section} in {NESTED_FILE}", "neither")
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
    except OSError as e:  # such as a name that is too long
        found = e.strerror or type(e).__name__
    except ValueError as e:  # a zero byte in it
        found = str(e)
    raise InvalidMedia(one_line(str(path), LONGEST_PATH), expected, found)


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
