"""Pictures: from a file, bytes or a Pillow image to the patches that the vision encoder takes.

Bit-identical to `Ernie4_5_VLMoeImageProcessorPil` given the same Pillow: Pillow resizes, and the rest is a table.
"""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ernie_export.common.errors import InvalidMedia
from ernie_export.runtime.preprocess import pixels, settings
from ernie_export.runtime.preprocess.settings import CHANNELS, PixelSettings, Section

FILE = "preprocessor_config.json"
_DEFAULT_SIZE = (56 * 56, 28 * 28 * 6177)

ImageSource = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class ImageProcessor:
    """The settings of a checkpoint's image processor, and the table from pixel value to model input."""

    settings: PixelSettings
    table: pixels.Table
    max_source_pixels: int = pixels.MAX_SOURCE_PIXELS
    formats: tuple[str, ...] | None = None  # that a file may have, by Pillow's names; None: all that Pillow knows

    @classmethod
    def from_folder(cls, folder: Path) -> "ImageProcessor":
        """Read preprocessor_config.json, or `image_processor` of processor_config.json.

        Raises UserError for a missing file, a key we do not know, or a value we do not implement.
        """
        path, values = settings.processor_section(Path(folder), "image_processor", FILE)
        section = Section(path, values)
        section.check_keys(set())
        if section.whole("temporal_patch_size", 1) != 1:
            raise section.fail("temporal_patch_size", "1: a picture is one frame")
        shared = section.pixels(_DEFAULT_SIZE, tuple(range(settings.HAMMING + 1)))
        return cls(shared, pixels.image_table(shared))

    def load(self, source: ImageSource, name: str = "") -> Image.Image:
        """Decode a file (path or its bytes) or convert a Pillow image to RGB. `name`: of what is no path, in errors.

        A file is turned upright by its EXIF tag and loses its alpha channel; a Pillow image is taken as it lies, with
        transparency laid over white. The two differ because the reference's own two ways in differ. Raises UserError
        for what cannot be read: missing, empty, truncated, not an image, or more than `max_source_pixels`.
        """
        if isinstance(source, Image.Image):
            return self._decode(source, name or "the given image", upright=False)
        if isinstance(source, bytes):
            name, stream = name or "the given bytes", io.BytesIO(source)
            size = len(source)
        else:
            path = Path(source)
            name = str(path)
            data = settings.read_media(path, "an image")
            stream, size = io.BytesIO(data), len(data)
        if size == 0:
            raise InvalidMedia(name, "an image", "an empty file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # malformed metadata, and the bomb warning: refused below, by our limit
            try:
                image = Image.open(stream, formats=self.formats)
            except Exception as e:  # Pillow's format plugins raise anything on malformed bytes
                raise InvalidMedia(name, "an image", _reason(e)) from e
            with image:
                return self._decode(image, name, upright=True)

    def _decode(self, image: Image.Image, name: str, upright: bool) -> Image.Image:
        width, height = image.size
        if width * height > self.max_source_pixels:
            limit = self.max_source_pixels
            raise InvalidMedia(name, f"at most {limit} pixels", f"{width}×{height}", hint="a decompression bomb?")
        if width * height == 0:
            raise InvalidMedia(name, "an image with pixels", f"{width}×{height}")
        try:
            if upright:
                image = ImageOps.exif_transpose(image).convert("RGB")
            return to_rgb(image)
        except Exception as e:  # decoding happens here: truncated or damaged data raises anything
            raise InvalidMedia(name, "a whole image", _reason(e)) from e

    def __call__(self, images: list[Image.Image]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Resize, normalise and cut into patches.

        Returns pixel_values float32 (patches, 3·patch²), the patches of all images one after another, and
        image_grid_thw int64 (images, 3) with rows (1, rows of patches, columns of patches). Raises UserError for an
        aspect ratio above 200.
        """
        patch = self.settings.patch_size
        pictures = [to_rgb(image) for image in images]
        sizes = [
            pixels.target_size(picture.height, picture.width, self.settings, f"image {index + 1}")
            for index, picture in enumerate(pictures)
        ]
        grids = np.array([(1, h // patch, w // patch) for h, w in sizes], dtype=np.int64).reshape(-1, 3)
        out = np.empty((int(grids.prod(axis=1).sum()), CHANNELS * patch * patch), dtype=np.float32)
        start = 0
        for picture, (height, width), grid in zip(pictures, sizes, grids, strict=True):
            if self.settings.do_resize:
                picture = picture.resize((width, height), resample=Image.Resampling(self.settings.resample))
            planes = np.asarray(picture).transpose(2, 0, 1)
            stop = start + int(grid.prod())
            pixels.write_patches(planes, self.table, self.settings, out[start:stop])
            start = stop
        return out, grids


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, any transparency laid over white (`convert_to_rgb`, image_transforms.py)."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    """An exception's message in one line, without the address of a stream in it."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "a file in no format that Pillow knows"
    return " ".join(str(error).split()) or type(error).__name__
