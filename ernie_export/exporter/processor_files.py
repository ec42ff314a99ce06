"""The files that a bundle takes over from its checkpoint: tokenizer, chat template, processors' settings, font."""

import json
from pathlib import Path

from ernie_export.common.errors import UserError
from ernie_export.common.json_fields import read_json
from ernie_export.graphs.config import ErnieConfig

PROCESSOR_FILES = {  # name: required
    "config.json": True,
    "tokenizer.json": True,
    "tokenizer_config.json": True,
    "preprocessor_config.json": False,
    "video_preprocessor_config.json": False,
    "processor_config.json": False,
    "chat_template.jinja": False,
    "chat_template.json": False,
    "generation_config.json": False,
    "special_tokens_map.json": False,
}


def find_processor_files(folder: Path) -> list[Path]:
    """What the runtime reads besides the graphs: tokenizer, template, processors' settings and the timestamps' font."""
    for name, required in PROCESSOR_FILES.items():
        if required and not (folder / name).is_file():
            raise UserError(f"{folder / name}: expected a file, found none")
    found = [folder / name for name in PROCESSOR_FILES if (folder / name).is_file()]
    for name in ("video_preprocessor_config.json", "processor_config.json"):
        font = video_font(folder / name)
        if font is not None:
            if Path(font).name != font or not (folder / font).is_file():
                raise UserError(f"{folder / name}: font: expected the name of a file in the checkpoint, found {font!r}")
            return [*found, folder / font]
    return found


def picture_tokens(folder: Path, config: ErnieConfig) -> tuple[int, int]:
    """Decoder tokens of the smallest and of the largest picture that the processors of `folder` let through.

    A picture is resized to between `size.shortest_edge` and `size.longest_edge` pixels (the names are historical), an
    image by one processor, a clip's frames by another.
    """
    bounds = []
    for section, name, silent in (
        ("image_processor", "preprocessor_config.json", (3136, 4842768)),
        ("video_processor", "video_preprocessor_config.json", (234416, 937664)),
    ):
        nested = folder / "processor_config.json"
        settings = read_json(nested).get(section) if nested.is_file() else None
        path = nested if settings is not None else folder / name
        if settings is None and path.is_file():
            settings = read_json(path)
        size = settings.get("size") if isinstance(settings, dict) else None
        edges = {"shortest_edge": silent[0], "longest_edge": silent[1]} | (size if isinstance(size, dict) else {})
        least, most = edges["shortest_edge"], edges["longest_edge"]
        if type(least) is not int or type(most) is not int or not 0 < least <= most:
            raise UserError(f"{path}: size: expected 0 < shortest_edge <= longest_edge pixels, found {size}")
        bounds.append((least, most))
    side = config.vision.patch_size * config.vision.spatial_merge_size
    return -(-min(least for least, _ in bounds) // side**2), max(most for _, most in bounds) // side**2


def video_font(path: Path) -> str | None:
    """The font that a video processor's settings name, if this file holds such settings."""
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_bytes())
    except ValueError as e:
        raise UserError(f"{path}: expected JSON, found {' '.join(str(e).split())}") from e
    if not isinstance(settings, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(settings).__name__}")
    settings = settings.get("video_processor", settings)
    font = settings.get("font") if isinstance(settings, dict) else None
    return font if isinstance(font, str) else None
