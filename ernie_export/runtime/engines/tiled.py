"""Weights of a bundle that lie as CUDA's kernels for experts read them."""

from collections.abc import Iterator, Mapping

from ernie_export.common import manifest as manifest_file
from ernie_export.common.errors import InvalidFile
from ernie_export.common.expert_layout import TILE_OUTPUTS, TILE_VALUES
from ernie_export.common.manifest import Manifest
from ernie_export.common.safetensors_header import TensorEntry


def tiled_entries(manifest: Manifest, entries: Mapping[str, TensorEntry]) -> Iterator[TensorEntry]:
    """Yield the tiled tensors of the data file. Raises InvalidFile for a name of none, or of one that cannot be."""
    for name in manifest.tiled:
        entry = entries.get(name)
        if entry is None or entry.dtype != "U8" or len(entry.shape) != 3 or not _holds_tiles(entry.shape):
            expected = f"names of 4-bit weights of experts in {manifest.data_file}"
            raise InvalidFile(manifest_file.NAME, expected, name, key="tiled")
        yield entry


def _holds_tiles(shape: tuple[int, ...]) -> bool:
    return shape[1] % TILE_OUTPUTS == 0 and 2 * shape[2] % TILE_VALUES == 0
