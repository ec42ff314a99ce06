"""Arithmetic that images and videos share: target size, patch order and the table from pixel value to float32.

Decoded pixels have 256 values, so every rescaling and normalisation is a table of 256 float32 numbers a channel. The
table is made with the reference's own operations in its own precision, hence the result is the same to the last bit.
"""

import math

import numpy as np
from numpy.typing import NDArray

from ernie_export.common.errors import InvalidMedia
from ernie_export.runtime.preprocess.settings import CHANNELS, PixelSettings

MAX_ASPECT_RATIO = 200
# Pillow's default Image.MAX_IMAGE_PIXELS (256 MiB of RGB): past it Pillow warns of a decompression bomb. We refuse.
MAX_SOURCE_PIXELS = 89_478_485

Table = NDArray[np.float32]


def target_size(height: int, width: int, settings: PixelSettings, name: str) -> tuple[int, int]:
    """Height and width after resizing: multiples of `settings.factor`, the pixel count within its bounds.

    The formula of `smart_resize` (image_processing_pil_ernie4_5_vl_moe.py); `round` is to the even neighbour, as there.
    With `do_resize` off, the size itself. Raises UserError, naming the picture `name`, for an aspect ratio above 200,
    or for a size that does not divide into patches where nothing may be resized.
    """
    factor = settings.factor
    if not settings.do_resize:
        if height % factor or width % factor:
            raise InvalidMedia(name, f"sides that are multiples of {factor} pixels", f"{width}×{height}")
        return height, width
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise InvalidMedia(name, f"an aspect ratio of at most {MAX_ASPECT_RATIO}", f"{width}×{height}")
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > settings.max_pixels:
        beta = math.sqrt((height * width) / settings.max_pixels)
        new_height = max(factor, math.floor(height / beta / factor) * factor)
        new_width = max(factor, math.floor(width / beta / factor) * factor)
    elif new_height * new_width < settings.min_pixels:
        beta = math.sqrt(settings.min_pixels / (height * width))
        new_height = math.ceil(height * beta / factor) * factor
        new_width = math.ceil(width * beta / factor) * factor
    if new_height * new_width == 0:
        # Rounding to the nearest multiple gave nothing, and min_pixels is too small to grow it back.
        raise InvalidMedia(name, f"a picture of at least {factor} pixels a side", f"{width}×{height}")
    return new_height, new_width


def image_table(settings: PixelSettings) -> Table:
    """float32 (3, 256): float64 × factor → float32 → (x − mean) / std, as the PIL image processor computes it."""
    values = np.arange(256, dtype=np.uint8)
    if settings.do_rescale:
        values = (values.astype(np.float64) * settings.rescale_factor).astype(np.float32)
    row = values.astype(np.float32)
    if not settings.do_normalize:
        return np.repeat(row[None], CHANNELS, axis=0)
    mean = np.array(settings.mean, dtype=np.float32)[:, None]
    std = np.array(settings.std, dtype=np.float32)[:, None]
    return (row[None] - mean) / std


def video_table(settings: PixelSettings) -> Table:
    """float32 (3, 256), as the video processor computes it: the rescaling is folded into mean and std, in float32."""
    row = np.arange(256).astype(np.float32)[None]
    if not settings.do_normalize:
        # One of the two is on: VideoProcessor refuses a file with neither, whose result would not be float32.
        return np.repeat(row * np.float32(settings.rescale_factor), CHANNELS, axis=0)
    mean = np.array(settings.mean, dtype=np.float32)[:, None]
    std = np.array(settings.std, dtype=np.float32)[:, None]
    if settings.do_rescale:
        inverse = np.float32(1.0 / settings.rescale_factor)
        mean, std = mean * inverse, std * inverse
    return (row - mean) / std


def write_patches(planes: NDArray[np.uint8], table: Table, settings: PixelSettings, out: NDArray[np.float32]) -> None:
    """Cut one picture into patches in merge-block-major order and write their values into `out`.

    `planes` is uint8 (3, height, width); `out` is float32 (patches, 3·patch²), each row a patch (C, patch, patch).
    """
    channels, height, width = planes.shape
    patch, merge = settings.patch_size, settings.merge_size
    grid_h, grid_w = height // patch, width // patch
    blocks = planes.reshape(channels, grid_h // merge, merge, patch, grid_w // merge, merge, patch)
    rows = blocks.transpose(1, 4, 2, 5, 0, 3, 6).reshape(grid_h * grid_w, channels, patch * patch)
    target = out.reshape(grid_h * grid_w, channels, patch * patch)
    for channel in range(channels):
        target[:, channel] = table[channel][rows[:, channel]]
