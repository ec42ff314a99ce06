"""The files that a bundle copies from its checkpoint: tokenizer, chat template, processors' settings, font."""

import math
from pathlib import Path

from ernie_export.common import git_lfs
from ernie_export.common.errors import InvalidFile
from ernie_export.common.processor_settings import (
    IMAGE_PROCESSOR,
    TEMPLATE_FILE,
    VIDEO_PROCESSOR,
    PixelBounds,
    template_file,
    timestamp_font,
)
from ernie_export.graphs.config import ErnieConfig

LONGEST_RATIO = 16  # of an image's sides: one that is longer still, and tiny, may be larger than engines take
ROUNDING_GROWTH = math.sqrt(LONGEST_RATIO) + 1 / math.sqrt(LONGEST_RATIO)
COPIED_SUFFIXES = (".json", ".jinja", ".ttf", ".otf", ".model")
PROCESSOR_FILES = {  # name: required
    "config.json": True,
    "tokenizer.json": True,
    "tokenizer_config.json": True,
    "preprocessor_config.json": False,
    "video_preprocessor_config.json": False,
    "processor_config.json": False,
    "chat_template.json": False,
    "generation_config.json": False,
    "special_tokens_map.json": False,
    "added_tokens.json": False,
}


def refuse_foreign_links(folder: Path) -> None:
    """Raise InvalidFile for a processor file that is a link out of the checkpoint: its target would be copied.

    In a Hugging Face cache, where files are links to ../../blobs, the cache's folder of the model counts as the
    checkpoint.
    """
    root = folder.resolve()
    if root.parent.name == "snapshots":
        root = root.parents[1]
    for path in {*folder.iterdir(), template_file(folder)}:
        if path.suffix in COPIED_SUFFIXES and not path.resolve().is_relative_to(root):
            raise InvalidFile(path, "a file in the checkpoint", "a link that leaves it", hint="copy the file there")


def find_processor_files(folder: Path, require_all: bool = True) -> list[Path]:
    """Return the files that the runtime reads besides the graphs, the timestamps' font among them.

    Args:
        folder: A checkpoint.
        require_all: Whether a required file, or the font that timestamps are drawn with, must be there.

    Raises:
        InvalidFile: A required file is missing, settings are malformed, or the font is not in `folder`.
    """
    for name, required in PROCESSOR_FILES.items():
        if required and require_all and not (folder / name).is_file():
            raise InvalidFile(folder / name, "a file", "a folder" if (folder / name).is_dir() else "none")
    paths = (*(folder / name for name in PROCESSOR_FILES), template_file(folder))
    files = [path for path in paths if path.is_file()]
    settings = VIDEO_PROCESSOR.find_settings(folder)
    font = None if settings is None else timestamp_font(settings)
    if font is not None and (folder / font).is_file():
        return [*files, folder / font]
    if require_all and settings is not None and font is not None:
        raise settings.error("font", "the name of a file in the checkpoint", f"{font}, which is not there")
    return files


def bundle_name(path: Path) -> str:
    """Return the name that a checkpoint's processor file has in a bundle, which has no folder of templates."""
    return TEMPLATE_FILE if path.suffix == ".jinja" else path.name


def copy_file(source: Path, target: Path) -> None:
    """Copy a processor file.

    Raises InvalidFile where `source` cannot be read or is a git-lfs pointer, OSError where `target` cannot be written.
    """
    try:
        content = source.read_bytes()
    except OSError as e:
        raise InvalidFile(source, "a readable file", e.strerror or e) from e
    if git_lfs.is_pointer(content):
        raise InvalidFile(source, "a file of the checkpoint", git_lfs.FOUND, hint=git_lfs.HINT)
    target.write_bytes(content)


def limit_image_tokens(folder: Path, config: ErnieConfig, most: int) -> None:
    """Make the processors in `folder`, a bundle's, resize images and frames to at most `most` decoder tokens.

    Raises InvalidFile for malformed settings, OSError where a file cannot be written.
    """
    factor = config.vision.patch_size * config.vision.spatial_merge_size
    pixels = most * factor**2
    for kind in (IMAGE_PROCESSOR, VIDEO_PROCESSOR):
        bounds = PixelBounds.from_folder(folder, kind)
        minimum = bounds.minimum
        if enlarged_tokens(minimum, factor) > most:
            minimum = min(minimum, enlarged_within(pixels, factor))
        limited = PixelBounds(minimum, min(bounds.maximum, pixels))
        if limited != bounds:
            kind.write_bounds(folder, limited)


def enlarged_tokens(minimum: int, factor: int) -> int:
    """Return the most tokens of a small image that is enlarged to `minimum` pixels, its sides rounded up to `factor`.

    Each side grows by less than `factor` then: an area of a to less than (√a·√r + 1)(√a/√r + 1), in units of factor²,
    where the sides are as r to 1. That is for images of up to LONGEST_RATIO.
    """
    area = minimum / factor**2
    return math.ceil(area + math.sqrt(area) * ROUNDING_GROWTH + 1) - 1


def enlarged_within(pixels: int, factor: int) -> int:
    """Return the most pixels that a small image may be enlarged to so that rounding its sides up ends within `pixels`.

    It is what `enlarged_tokens` computes, the other way round.
    """
    side = (math.sqrt(ROUNDING_GROWTH**2 + 4 * (pixels / factor**2 - 1)) - ROUNDING_GROWTH) / 2
    return max(int((side * factor) ** 2), 1)


def image_token_range(folder: Path, config: ErnieConfig) -> tuple[int, int]:
    """Return the fewest and the most decoder tokens of an image or of a video's frame pair.

    They follow from the pixels that the processors of `folder` resize to; small ones are enlarged and rounded up, past
    the largest where the bounds lie close together. Raises InvalidFile for malformed bounds.
    """
    factor = config.vision.patch_size * config.vision.spatial_merge_size
    both = [PixelBounds.from_folder(folder, kind) for kind in (IMAGE_PROCESSOR, VIDEO_PROCESSOR)]
    smallest = -(-min(bounds.minimum for bounds in both) // factor**2)
    largest = max(max(bounds.maximum // factor**2, enlarged_tokens(bounds.minimum, factor)) for bounds in both)
    return smallest, largest
