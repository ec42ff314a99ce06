"""A checkpoint's files beside the weights, in the transformers spelling whatever revision they come from."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ernie_export.common.errors import UserError
from ernie_export.common.json_fields import JsonObject, read_json
from ernie_export.graphs.checkpoint.original.config import is_original, translate
from ernie_export.graphs.checkpoint.original.processors import (
    FONT,
    IMAGE_FILE,
    OPTIONS_FILE,
    VIDEO_FILE,
    translate_processors,
)
from ernie_export.graphs.checkpoint.original.tokenizer import CONFIG_FILE, translate_tokenizer
from ernie_export.graphs.config import ErnieConfig

# What the translated files replace; every other file is linked as it is.
REPLACED = {
    "config.json", IMAGE_FILE, VIDEO_FILE, OPTIONS_FILE, CONFIG_FILE, "tokenizer.json", "tokenizer.model",
    "added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
}  # fmt: skip


@contextmanager
def transformers_spelling(folder: Path, config: ErnieConfig, whole: bool = True) -> Iterator[Path]:
    """A folder with the files of checkpoint `folder` in the transformers spelling.

    It is `folder` itself where that is so already. For the original revision, known by config.json's `model_type`, it
    is a temporary one: translated files, and links to the others, weights among them. Without `whole`, tokenizer and
    processors may be missing and are then left out. Raises UserError, naming file and key, for what is not covered.
    """
    document = read_json(folder / "config.json")
    if not is_original(document):
        yield folder
        return
    if whole and not (folder / FONT).is_file():
        expected = "the font that timestamps are drawn with (the original code fetches it when first run)"
        raise UserError(f"{folder / FONT}: expected {expected}, found none")
    documents = {"config.json": translate(JsonObject(folder / "config.json", "", document))}
    files: dict[str, bytes] = {}
    if whole or (folder / IMAGE_FILE).is_file():
        documents |= translate_processors(folder, config)
    if whole or (folder / CONFIG_FILE).is_file():
        files = translate_tokenizer(folder, config)
    files |= {name: json.dumps(content, indent=1).encode() for name, content in documents.items()}
    with TemporaryDirectory(prefix="ernie-export-") as temporary:
        for name, content in files.items():
            (Path(temporary) / name).write_bytes(content)
        for path in folder.iterdir():
            if path.name not in REPLACED:
                (Path(temporary) / path.name).symlink_to(path.resolve())
        yield Path(temporary)
