"""Compare the files of a bundle's preprocessing with the checkpoint's: another tokenizer answers another question."""

from pathlib import Path

from ernie_export.exporter.processor_files import find_processor_files
from ernie_export.graphs.checkpoint.original.files import as_hf_checkpoint
from ernie_export.graphs.config import ErnieConfig


def compare_files(bundle: Path, checkpoint: Path) -> list[str]:
    """Return a line for each tokenizer, template, processor or font file that is not the checkpoint's."""
    lines = []
    with as_hf_checkpoint(checkpoint, ErnieConfig.from_hf(checkpoint), require_all=False) as folder:
        for path in find_processor_files(folder, require_all=False):
            copy = bundle / path.name
            if not copy.is_file():
                lines.append(f"{path.name}: expected the checkpoint's file, found none in the bundle")
            elif copy.read_bytes() != path.read_bytes():
                lines.append(f"{path.name}: expected the checkpoint's file, found another in the bundle")
    return lines
