"""What is asked of a model: rows, their context, and pictures as the image processor would resize them."""

import math
from dataclasses import dataclass
from pathlib import Path

from ernie_export.common.command import picture_sizes
from ernie_export.common.errors import UserError
from ernie_export.common.json_fields import JsonObject, read_json
from ernie_export.graphs.config import ErnieConfig, VisionConfig

CONTEXT = 4096  # tokens, where nothing else is asked for and the model has as many positions
PIXELS = (56 * 56, 28 * 28 * 6177)  # the image processor's bounds where the checkpoint says nothing
PIXEL_LIMIT = 2**40


@dataclass(frozen=True)
class Picture:
    """A picture as asked for, in pixels; patches of the encoder and tokens of the decoder after resizing."""

    width: int
    height: int
    patches: int
    tokens: int


@dataclass(frozen=True)
class Workload:
    """`batch` rows of `context` tokens, each with these pictures."""

    context: int
    batch: int
    pictures: tuple[Picture, ...]

    @property
    def vision_tokens(self) -> int:
        """Tokens of a row that take the vision experts: a picture's, and its start and end token."""
        return sum(picture.tokens + 2 for picture in self.pictures)


def read_workload(config: ErnieConfig, folder: Path, context: int | None, batch: int, images: str) -> Workload:
    """The workload of the command's options; UserError where the model's positions do not hold it."""
    limit = config.text.max_positions
    pictures = read_pictures(images, config.vision, pixel_bounds(folder))
    workload = Workload(min(CONTEXT, limit) if context is None else context, batch, pictures)
    if workload.context > limit:
        raise UserError(f"--context: expected at most {limit} (max_position_embeddings), found {workload.context}")
    if workload.vision_tokens > workload.context:
        needed = f"at least the {workload.vision_tokens} tokens of --images"
        raise UserError(f"--context: expected {needed}, found {workload.context}")
    return workload


def read_pictures(images: str, vision: VisionConfig, bounds: tuple[int, int]) -> tuple[Picture, ...]:
    """Pictures of "WIDTHxHEIGHT,..."; empty text is none. UserError on anything else."""
    pictures = []
    for width, height in picture_sizes(images):
        rows, columns = resized(height, width, vision.patch_size * vision.spatial_merge_size, bounds)
        pictures.append(Picture(width, height, rows * columns * vision.spatial_merge_size**2, rows * columns))
    return tuple(pictures)


def resized(height: int, width: int, factor: int, bounds: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of `factor` pixels after resizing (`smart_resize` of the reference's image processor)."""
    low, high = bounds
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor**2 > high:
        beta = math.sqrt((height * width) / high)
        return max(1, math.floor(height / beta / factor)), max(1, math.floor(width / beta / factor))
    if rows * columns * factor**2 < low:
        beta = math.sqrt(low / (height * width))
        return math.ceil(height * beta / factor), math.ceil(width * beta / factor)
    return rows, columns


def pixel_bounds(folder: Path) -> tuple[int, int]:
    """Least and most pixels of a resized picture, as the checkpoint's processor files have them."""
    for name, key in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        if not (folder / name).exists():
            continue
        section = JsonObject(folder / name, "", read_json(folder / name))
        section = section.object(key, absent={}) if key else section
        if section.get("size") is not None:
            size = section.object("size")
            low = size.integer("shortest_edge", maximum=PIXEL_LIMIT)  # the names are historical: both count pixels
            return low, size.integer("longest_edge", minimum=low, maximum=PIXEL_LIMIT)
    return PIXELS
