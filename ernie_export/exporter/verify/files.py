"""Compare the files of a bundle's preprocessing with the checkpoint's: another tokenizer answers another question."""

from pathlib import Path
from typing import Any

from ernie_export.common.json_fields import read_json
from ernie_export.common.manifest import Manifest
from ernie_export.common.processor_settings import IMAGE_PROCESSOR, NESTED_FILE, VIDEO_PROCESSOR
from ernie_export.exporter.processor_files import bundle_name, find_processor_files
from ernie_export.graphs.checkpoint.original.files import as_hf_checkpoint
from ernie_export.graphs.config import ErnieConfig

BOUNDS = ("size", "min_pixels", "max_pixels")  # of images, which engines of a fixed size narrow
SETTINGS = {NESTED_FILE, *IMAGE_PROCESSOR.files, *VIDEO_PROCESSOR.files}


def compare_files(bundle: Path, manifest: Manifest, checkpoint: Path) -> list[str]:
    """Return a line for each tokenizer, template, processor or font file that is not the checkpoint's.

    Engines may have narrower bounds of an image's size than the checkpoint.
    """
    lines = []
    with as_hf_checkpoint(checkpoint, ErnieConfig.from_hf(checkpoint), require_all=False) as folder:
        for path in find_processor_files(folder, require_all=False):
            copy = bundle / bundle_name(path)
            if not copy.is_file():
                lines.append(f"{path.name}: expected the checkpoint's file, found none in the bundle")
            elif copy.read_bytes() == path.read_bytes():
                continue
            elif manifest.engines is None or path.name not in SETTINGS or unbounded(copy) != unbounded(path):
                lines.append(f"{path.name}: expected the checkpoint's file, found another in the bundle")
    return lines


def unbounded(path: Path) -> Any:
    """Return the settings of a file without the bounds of an image's size."""
    document = read_json(path)
    sections = [value for value in document.values() if isinstance(value, dict)] if path.name == NESTED_FILE else []
    for settings in [document, *sections]:
        for key in BOUNDS:
            settings.pop(key, None)
    return document
