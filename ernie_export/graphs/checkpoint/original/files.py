"""A checkpoint's files in the Hugging Face (`hf`) layout, whatever revision they come from."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ernie_export.common.errors import InvalidFile
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
def as_hf_checkpoint(folder: Path, config: ErnieConfig, require_all: bool = True) -> Iterator[Path]:
    """Yield a folder with the checkpoint's files in the Hugging Face (`hf`) layout.

    Args:
        folder: The checkpoint. If it has the hf layout already, it is yielded itself. For the original revision, known
            by config.json's `model_type`, a temporary folder holds translated files, and links to all others.
        config: The model's configuration.
        require_all: Whether tokenizer and processors must be there; otherwise missing ones are left out.

    Raises:
        UserError: A file cannot be translated; the message names file and key.
    """
    document = read_json(folder / "config.json")
    if not is_original(document):
        yield folder
        return
    if require_all and not (folder / FONT).is_file():
        expected = "the font that timestamps are drawn with (the original code fetches it when first run)"
        raise InvalidFile(folder / FONT, expected, "none")
    documents = {"config.json": translate(JsonObject(folder / "config.json", "", document))}
    files: dict[str, bytes] = {}
    if require_all or (folder / IMAGE_FILE).is_file():
        documents |= translate_processors(folder, config)
    if require_all or (folder / CONFIG_FILE).is_file():
        files = translate_tokenizer(folder, config)
    files |= {name: json.dumps(content, indent=1).encode() for name, content in documents.items()}
    with TemporaryDirectory(prefix="ernie-export-") as temporary:
        for name, content in files.items():
            (Path(temporary) / name).write_bytes(content)
        for path in folder.iterdir():
            if path.name not in REPLACED:
                (Path(temporary) / path.name).symlink_to(path.resolve())
        yield Path(temporary)
