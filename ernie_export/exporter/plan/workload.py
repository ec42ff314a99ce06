"""The workload that a model is planned for: sequences, their context, and images as the processor resizes them."""

from dataclasses import dataclass
from pathlib import Path

from ernie_export.common.errors import InvalidValue
from ernie_export.common.image_sizes import parse_image_sizes
from ernie_export.common.processor_settings import IMAGE_PROCESSOR, PixelBounds
from ernie_export.common.smart_resize import smart_resize
from ernie_export.graphs.config import ErnieConfig, VisionConfig

DEFAULT_CONTEXT = 4096  # tokens, if the model has as many positions


@dataclass(frozen=True)
class Image:
    """An image's size in pixels before resizing, and its patches (encoder) and tokens (decoder) after it."""

    width: int
    height: int
    patches: int
    tokens: int


@dataclass(frozen=True)
class Workload:
    """Sequences that are answered together.

    Attributes:
        context: Tokens of a sequence, those of its images included.
        batch: Number of sequences.
        images: Images of each sequence.
    """

    context: int
    batch: int
    images: tuple[Image, ...]

    @property
    def vision_tokens(self) -> int:
        """Tokens of a sequence that take the vision experts: those of images, and their start and end tokens."""
        return sum(image.tokens + 2 for image in self.images)


def read_workload(config: ErnieConfig, folder: Path, context: int | None, batch: int, images: str) -> Workload:
    """Return the workload that the command's options describe.

    Args:
        config: The model's configuration.
        folder: Folder of the processors' settings.
        context: Tokens of a sequence; None for DEFAULT_CONTEXT, or as many as the model has.
        batch: Number of sequences.
        images: Sizes of each sequence's images, "WIDTHxHEIGHT,..." in pixels; may be empty.

    Raises:
        InvalidValue: The model has fewer positions than the context, or the context fewer than the images need.
    """
    limit = config.text.max_positions
    resized = read_images(images, config.vision, PixelBounds.from_folder(folder, IMAGE_PROCESSOR))
    workload = Workload(min(DEFAULT_CONTEXT, limit) if context is None else context, batch, resized)
    if workload.context > limit:
        raise InvalidValue("--context", f"at most {limit} (max_position_embeddings)", workload.context)
    if workload.vision_tokens > workload.context:
        raise InvalidValue("--context", f"at least the {workload.vision_tokens} tokens of --images", workload.context)
    return workload


def read_images(images: str, vision: VisionConfig, bounds: PixelBounds) -> tuple[Image, ...]:
    """Return the images of "WIDTHxHEIGHT,..."; none for empty text. Raises InvalidValue for anything else."""
    merge = vision.spatial_merge_size
    factor = vision.patch_size * merge
    resized = []
    for width, height in parse_image_sizes(images):
        new_height, new_width = smart_resize(height, width, factor, bounds)
        tokens = (new_height // factor) * (new_width // factor)
        resized.append(Image(width, height, tokens * merge**2, tokens))
    return tuple(resized)
