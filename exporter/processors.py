"""The files that a bundle takes over from its checkpoint: tokenizer, chat template, processors' settings, font."""

import json
from pathlib import Path

from ernie_export.graphs.errors import UserError

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
