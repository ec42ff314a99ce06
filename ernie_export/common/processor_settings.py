"""Where a checkpoint or a bundle keeps the settings of its image and video processors, and what both halves read there.

Settings stand in one nested file for both processors (processor_config.json, the newer form, which wins) or in a file
for each.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ernie_export.common.json_fields import JsonObject, read_json

NESTED_FILE = "processor_config.json"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"  # for other uses, such as tools, by name; "default" apart
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
        size = settings.get("size")
        return kind.default_bounds if size is None else cls._from_size(settings, size)

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
        files: Names of the files that may have them alone, in the order in which the reference looks.
        default_bounds: What the reference's class uses where the settings name no size.
    """

    section: str
    files: tuple[str, ...]
    default_bounds: PixelBounds

    def find_settings(self, folder: Path) -> JsonObject | None:
        """Return the processor's settings in `folder`, or None where no file has them.

        The reference falls back to the image processor's file for videos, and refuses it for its frames in a patch.

        Raises InvalidFile for a file that is malformed or cannot be read.
        """
        nested = folder / NESTED_FILE
        if nested.is_file():
            document = JsonObject(nested, "", read_json(nested))
            if document.get(self.section) is not None:
                return document.object(self.section)
        for path in (folder / name for name in self.files):
            if path.is_file():
                settings = JsonObject(path, "", read_json(path))
                if path.name == self.files[0] or settings.members.get("temporal_patch_size", 2) == 2:
                    return settings
        return None

    def write_bounds(self, folder: Path, bounds: PixelBounds) -> None:
        """Replace the bounds in the settings in `folder`, where there are some, and leave everything else.

        Raises InvalidFile for a file that is malformed, OSError for one that cannot be written.
        """
        found = self.find_settings(folder)
        if found is None:
            return
        document = read_json(found.path)
        settings = document[self.section] if found.path.name == NESTED_FILE else document
        settings["size"] = {"shortest_edge": bounds.minimum, "longest_edge": bounds.maximum}
        for key, pixels in (("min_pixels", bounds.minimum), ("max_pixels", bounds.maximum)):
            if key in settings:
                settings[key] = pixels
        found.path.write_text(json.dumps(document, indent=2) + "\n")


IMAGE_FILE = "preprocessor_config.json"
VIDEO_FILE = "video_preprocessor_config.json"
IMAGE_PROCESSOR = ProcessorKind("image_processor", (IMAGE_FILE,), PixelBounds(56 * 56, 28 * 28 * 6177))
VIDEO_PROCESSOR = ProcessorKind("video_processor", (VIDEO_FILE, IMAGE_FILE), PixelBounds(299 * 28 * 28, 1196 * 28 * 28))


def template_file(folder: Path) -> Path:
    """Return the file of the chat template in a checkpoint's folder, whether it is there or not.

    Where there is no chat_template.jinja, the class takes the default one among the additional templates.
    """
    beside = folder / TEMPLATE_FOLDER / "default.jinja"
    usual = folder / TEMPLATE_FILE
    return beside if beside.is_file() and not usual.exists() else usual


def timestamp_font(settings: JsonObject) -> str | None:
    """Return the name of the font that a video processor draws timestamps with, or None where it draws none.

    Raises InvalidFile for a name that is a path: the font lies beside the settings.
    """
    settings.get("font")  # known, even where nothing is drawn
    if "draw_on_frames" in settings and not settings.optional("draw_on_frames", settings.flag):
        return None
    name = settings.text("font", default=DEFAULT_FONT)
    if Path(name).name != name:
        raise settings.error("font", "the name of a file in the same folder")
    return name
