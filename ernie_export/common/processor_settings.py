"""Where a checkpoint or a bundle keeps the settings of its image and video processors, and what both halves read there.

Settings stand in one nested file for both processors (processor_config.json, the newer form, which wins) or in a file
for each.
"""

from dataclasses import dataclass
from pathlib import Path

from ernie_export.common.json_fields import JsonObject, read_json

NESTED_FILE = "processor_config.json"
DEFAULT_FONT = "Roboto-Regular.ttf"  # the video processor class's own
MAX_PIXELS = 2**27  # that a checkpoint may ask an image to be resized to: 1.5 GiB as float32


@dataclass(frozen=True)
class PixelBounds:
    """The fewest and the most pixels of an image or a video frame after resizing."""

    minimum: int
    maximum: int

    @classmethod
    def from_folder(cls, folder: Path, kind: "ProcessorKind") -> "PixelBounds":
        """Read the bounds of a checkpoint's processor; the class's own where the checkpoint is silent.

        Raises InvalidFile for a malformed file or malformed bounds.
        """
        settings = kind.find_settings(folder)
        return kind.default_bounds if settings is None else cls.from_json(settings, kind)

    @classmethod
    def from_json(cls, settings: JsonObject, kind: "ProcessorKind") -> "PixelBounds":
        """Read `size` from a processor's settings. Raises InvalidFile for malformed bounds."""
        bounds = kind.default_bounds
        size = settings.get("size")
        if size is not None:
            bounds = cls._from_size(settings, size)
        # Older files repeat the bounds under these names; the reference reads `size` alone.
        for key, pixels in (("min_pixels", bounds.minimum), ("max_pixels", bounds.maximum)):
            if settings.get(key) not in (None, pixels):
                raise settings.error(key, f"{pixels}, as in size")
        return bounds

    @classmethod
    def _from_size(cls, settings: JsonObject, size: object) -> "PixelBounds":
        # The names are historical: the numbers bound the count of pixels, not an edge.
        edges = {"shortest_edge", "longest_edge"}
        if not isinstance(size, dict) or {key for key, value in size.items() if value is not None} != edges:
            raise settings.error("size", '{"shortest_edge": fewest pixels, "longest_edge": most pixels}')
        minimum = size["shortest_edge"]
        maximum = size["longest_edge"]
        if type(minimum) is not int or type(maximum) is not int or not 0 < minimum <= maximum <= MAX_PIXELS:
            expected = f"whole numbers with 0 < shortest_edge <= longest_edge <= {MAX_PIXELS}"
            raise settings.error("size", expected)
        return cls(minimum, maximum)


@dataclass(frozen=True)
class ProcessorKind:
    """The image processor or the video processor of a checkpoint.

    Attributes:
        section: Key of its settings in NESTED_FILE.
        file: Name of its own file.
        default_bounds: What the reference's class uses where the settings name no size.
    """

    section: str
    file: str
    default_bounds: PixelBounds

    def find_settings(self, folder: Path) -> JsonObject | None:
        """Return the processor's settings in `folder`, or None where no file has them.

        Raises InvalidFile for a file that is malformed or cannot be read.
        """
        nested = folder / NESTED_FILE
        if nested.is_file():
            document = JsonObject(nested, "", read_json(nested))
            if document.get(self.section) is not None:
                return document.object(self.section)
        own = folder / self.file
        return JsonObject(own, "", read_json(own)) if own.is_file() else None


IMAGE_PROCESSOR = ProcessorKind("image_processor", "preprocessor_config.json", PixelBounds(56 * 56, 28 * 28 * 6177))
VIDEO_PROCESSOR = ProcessorKind(
    "video_processor", "video_preprocessor_config.json", PixelBounds(299 * 28 * 28, 1196 * 28 * 28)
)


def timestamp_font(settings: JsonObject) -> str | None:
    """Return the name of the font that a video processor draws timestamps with, or None where it draws none.

    Raises InvalidFile for a name that is a path: the font lies beside the settings.
    """
    if not settings.flag("draw_on_frames", default=True):
        return None
    name = settings.text("font", default=DEFAULT_FONT)
    if Path(name).name != name:
        raise settings.error("font", "the name of a file in the same folder")
    return name
