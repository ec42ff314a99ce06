"""Arithmetic that images and videos share: target size, patch order and the table from pixel value to float32.

Decoded pixels have 256 values, so every rescaling and normalisation is a table of 256 float32 numbers a channel. The
table is made with the reference's own operations in its own precision, hence the result is the same to the last bit.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ernie_export.common.errors import InvalidMedia
from ernie_export.common.smart_resize import MAX_ASPECT_RATIO, smart_resize
from ernie_export.runtime.preprocess.settings import CHANNELS, PixelSettings

Table = NDArray[np.float32]
Planes = NDArray[np.uint8]  # an image or a video after resizing: (frames, 3, height, width)


def target_size(height: int, width: int, settings: PixelSettings, name: str) -> tuple[int, int]:
    """Return height and width after resizing, as `smart_resize` gives them; the size itself with `do_resize` off.

    Args:
        height: Height of the image or frame in pixels.
        width: Its width in pixels.
        settings: The processor's settings.
        name: The image or video, for error messages.

    Raises:
        InvalidMedia: The aspect ratio is above 200, a side rounds to nothing, or the size does not divide into patches
            where nothing may be resized.
    """
    factor = settings.factor
    size = f"{width}×{height}"
    if not settings.do_resize:
        if height % factor or width % factor:
            raise InvalidMedia(name, f"sides that are multiples of {factor} pixels", size)
        return height, width
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise InvalidMedia(name, f"an aspect ratio of at most {MAX_ASPECT_RATIO}", size)
    new_height, new_width = smart_resize(height, width, factor, settings.bounds)
    if new_height * new_width == 0:
        raise InvalidMedia(name, f"at least {factor} pixels a side", size)
    return new_height, new_width


def image_table(settings: PixelSettings) -> Table:
    """Return float32 (3, 256), the model input of each channel's 256 pixel values, for images.

    The PIL image processor computes float64 × factor → float32 → (x − mean) / std.
    """
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
    """Return float32 (3, 256), the model input of each channel's 256 pixel values, for videos.

    The video processor folds the rescaling into mean and std, in float32.
    """
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


def pack(
    media: Sequence[Planes], table: Table, settings: PixelSettings, multiple: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Normalise resized media and cut them into patches.

    Args:
        media: Images or videos, uint8 (frames, 3, height, width) each.
        table: Model input of each channel's pixel values.
        settings: Patch and merge sizes.
        multiple: Each one's frames are brought to a multiple of this by repeating the last.

    Returns:
        float32 (patches, 3·patch²), frame after frame and medium after medium; and int64 (media, 3) with rows (frames,
        rows of patches, columns of patches).
    """
    patch = settings.patch_size
    shapes = [(-(-len(m) // multiple) * multiple, m.shape[2] // patch, m.shape[3] // patch) for m in media]
    grids = np.array(shapes, dtype=np.int64).reshape(-1, 3)
    out = np.empty((int(grids.prod(axis=1).sum()), CHANNELS * patch * patch), dtype=np.float32)
    start = 0
    for planes, (frames, rows, columns) in zip(media, shapes, strict=True):
        count = rows * columns
        for frame in planes:
            write_patches(frame, table, settings, out[start : start + count])
            start += count
        for _ in range(frames - len(planes)):
            out[start : start + count] = out[start - count : start]
            start += count
    return out, grids


def write_patches(planes: NDArray[np.uint8], table: Table, settings: PixelSettings, out: NDArray[np.float32]) -> None:
    """Cut one image or frame into patches in merge-block-major order and write their values into `out`.

    Args:
        planes: uint8 (3, height, width).
        table: float32 (3, 256), the model input of each pixel value.
        settings: The processor's settings.
        out: float32 (patches, 3·patch²); each row becomes a patch (C, patch, patch).
    """
    channels, height, width = planes.shape
    patch, merge = settings.patch_size, settings.merge_size
    grid_h, grid_w = height // patch, width // patch
    blocks = planes.reshape(channels, grid_h // merge, merge, patch, grid_w // merge, merge, patch)
    rows = blocks.transpose(1, 4, 2, 5, 0, 3, 6).reshape(grid_h * grid_w, channels, patch * patch)
    target = out.reshape(grid_h * grid_w, channels, patch * patch)
    for channel in range(channels):
        target[:, channel] = table[channel][rows[:, channel]]
