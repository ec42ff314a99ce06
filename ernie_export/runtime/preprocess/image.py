"""Images: from a file, bytes or a Pillow image to the patches that the vision encoder takes.

Bit-identical to `Ernie4_5_VLMoeImageProcessorPil` given the same Pillow: Pillow resizes, and the rest is a table.
"""

import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ernie_export.common.errors import InvalidMedia
from ernie_export.common.image_sizes import MAX_IMAGE_PIXELS
from ernie_export.common.processor_settings import IMAGE_PROCESSOR
from ernie_export.runtime.preprocess import pixels, settings
from ernie_export.runtime.preprocess.pixels import Planes
from ernie_export.runtime.preprocess.settings import PixelSettings

BAND_ROWS = 256  # converted to RGB at once
FILTERS = range(settings.HAMMING + 1)  # all of Pillow's

_PILLOW_LIMIT = threading.Lock()

ImageSource = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class ImageProcessor:
    """The image processor of a checkpoint.

    Attributes:
        settings: The checkpoint's settings.
        table: float32 (3, 256), the model input of each channel's 256 pixel values.
        max_source_pixels: Most pixels of an image that is decoded.
        formats: Formats that an image file may have, by Pillow's names; None for all that Pillow knows.
    """

    settings: PixelSettings
    table: pixels.Table
    max_source_pixels: int = MAX_IMAGE_PIXELS
    formats: tuple[str, ...] | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> "ImageProcessor":
        """Read preprocessor_config.json, or `image_processor` of processor_config.json.

        Raises InvalidFile for a missing file, or a value that would change the result and is not implemented.
        """
        section = settings.processor_settings(Path(folder), IMAGE_PROCESSOR)
        settings.expect_class(section, "image_processor_type", settings.IMAGE_CLASSES)
        settings.expect_processor_class(Path(folder), section)
        shared = PixelSettings.from_json(section, IMAGE_PROCESSOR, FILTERS, temporal_patch_size=1)
        if not settings.flag(section, "do_convert_rgb", default=True):
            raise section.error("do_convert_rgb", "true")
        if shared.do_resize and "size" in section and section.get("size") is None:
            raise section.error("size", "a value")
        section.optional("input_data_format", section.text)  # of arrays, which images are not
        return cls(shared.noting_ignored(section), pixels.image_table(shared))

    def load(self, source: ImageSource, name: str = "") -> Image.Image:
        """Decode a file (a path or its bytes), or convert a Pillow image to RGB.

        A file is turned upright by its EXIF tag; a Pillow image keeps its orientation, as in the reference.
        Transparency is laid over white and 16-bit grey scaled to 8 bits, as in Baidu's own code; the reference's loader
        drops the alpha channel of a file, and clips grey to white. In errors `name` stands for a source without a path.

        Raises InvalidMedia for a source that is missing, empty, truncated, no image, or has more than
        `max_source_pixels`.
        """
        if isinstance(source, Image.Image):
            return self._decode(source, name or "the given image", upright=False)
        if isinstance(source, bytes):
            name = name or "the given bytes"
            data = source
        else:
            path = Path(source)
            name = str(path)
            data = settings.read_media(path, "an image")
        if not data:
            raise InvalidMedia(name, "an image", "an empty file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # malformed metadata, and the bomb warning: refused below, by our limit
            with pillow_limit(self.max_source_pixels):
                try:
                    image = Image.open(io.BytesIO(data), formats=self.formats)
                except Exception as e:  # Pillow's format plugins raise anything on malformed bytes
                    expected = f"an image ({', '.join(self.formats)})" if self.formats else "an image"
                    raise InvalidMedia(name, expected, _reason(e)) from e
                with image:
                    return self._decode(image, name, upright=True)

    def _decode(self, image: Image.Image, name: str, upright: bool) -> Image.Image:
        width, height = image.size
        if width * height > self.max_source_pixels:
            expected = f"at most {self.max_source_pixels} pixels"
            raise InvalidMedia(name, expected, f"{width}×{height}", hint="a decompression bomb?")
        if width * height == 0:
            raise InvalidMedia(name, "an image with pixels", f"{width}×{height}")
        try:
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
        except Exception as e:  # decoding happens here: truncated or damaged data raises anything
            raise InvalidMedia(name, "a complete image", _reason(e)) from e

    def decode(self, source: ImageSource, name: str = "") -> Planes:
        """Load and resize one image. Raises InvalidMedia as `load` and `resize` do."""
        return self.resize(self.load(source, name), name or "the given image")

    def resize(self, image: Image.Image, name: str) -> Planes:
        """Resize an image to the model's size; return uint8 (1, 3, height, width).

        Raises InvalidMedia, naming the image `name`, for an aspect ratio above 200.
        """
        image = to_rgb(image)
        height, width = pixels.target_size(image.height, image.width, self.settings, name)
        if self.settings.do_resize:
            image = image.resize((width, height), resample=Image.Resampling(self.settings.resample))
        return np.asarray(image).transpose(2, 0, 1)[None]

    def pack(self, images: Sequence[Planes]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Normalise resized images and cut them into patches.

        Returns pixel_values float32 (patches, 3·patch²), the patches of all images one after another, and
        image_grid_thw int64 (images, 3) with rows (1, rows of patches, columns of patches).
        """
        return pixels.pack(images, self.table, self.settings)

    def __call__(self, images: list[Image.Image]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Resize, normalise and cut into patches; see `resize` and `pack`."""
        return self.pack([self.resize(image, f"image {number}") for number, image in enumerate(images, start=1)])


@contextmanager
def pillow_limit(max_pixels: int) -> Iterator[None]:
    """Let Pillow open images up to `max_pixels` where its own limit, twice MAX_IMAGE_PIXELS, is below it."""
    before = Image.MAX_IMAGE_PIXELS
    if before is None or max_pixels <= 2 * before:
        yield
        return
    with _PILLOW_LIMIT:  # it is one for all threads
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def is_grey16(image: Image.Image) -> bool:
    """Return whether an image is grey of 16 bits; Pillow has some formats' in the mode of 32 bits."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM", "JPEG2000"))


def scale_grey16(image: Image.Image) -> Image.Image:
    """Return grey of 16 bits as grey of 8, what is transparent in white."""
    values = np.asarray(image)
    grey = (values.clip(0, 65535) >> 8).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB, any transparency laid over white (`convert_to_rgb`, image_transforms.py), 16-bit grey scaled.

    Rows are converted a few at a time, so that the steps between do not hold whole images.
    """
    if image.mode == "RGB" and image.info.get("transparency") is None:
        return image
    grey16 = is_grey16(image)
    image.load()  # a crop of a file that was not read takes no transparency from what is found while reading
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, BAND_ROWS):
        rows = image.crop((0, top, image.width, min(top + BAND_ROWS, image.height)))
        result.paste(_rows_to_rgb(scale_grey16(rows) if grey16 else rows), (0, top))
    return result


def _rows_to_rgb(rows: Image.Image) -> Image.Image:
    if "A" in rows.getbands() or rows.info.get("transparency") is not None:
        white = Image.new("RGBA", rows.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rows.convert("RGBA")).convert("RGB")
    return rows.convert("RGB")


def _reason(error: Exception) -> str:
    """Return an exception's message in one line, without the address of a stream in it."""
    if isinstance(error, UnidentifiedImageError):
        return "a file of another format"
    return " ".join(str(error).split()) or type(error).__name__
