"""A checkpoint folder read lazily: headers first, rows with plain file reads when they are needed.

Nothing is mapped and nothing is kept, neither here nor in the page cache, so that a checkpoint larger than the memory
leaves the machine as it was. Only safetensors is opened: a pickled checkpoint is refused, for unpickling runs whatever
code it holds.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import ml_dtypes
import numpy as np

from ernie_export.common.errors import InvalidFile
from ernie_export.common.json_fields import one_line, read_json
from ernie_export.common.safetensors_header import TensorEntry, read_header
from ernie_export.graphs.checkpoint.folder import require_folder
from ernie_export.graphs.checkpoint.names import JoinedEntry, in_saved_form

# Dtypes that a checkpoint may store, by their safetensors name.
NUMPY = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pdparams")
AHEAD = 16 * 2**20  # bytes that the disk is asked for before they are needed


class Checkpoint:
    """The tensors of one checkpoint folder.

    Attributes:
        folder: The folder.
        tensors: Every tensor by the name, and in the form, that save_pretrained writes.
        ignored: Files of weights that are not read, by their names.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, TensorEntry], ignored: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.ignored = ignored
        self.tensors: dict[str, TensorEntry] = {}
        for name, entry in in_saved_form(tensors):
            if name in self.tensors:
                found = f"{one_line(self.tensors[name].name)} and {one_line(entry.name)}"
                raise InvalidFile(folder, f"tensor {one_line(name)} under one name", found)
            self.tensors[name] = entry
        self._required: set[str] = set()

    @staticmethod
    def open(folder: Path) -> "Checkpoint":
        """Read the headers of `folder`'s weights: model.safetensors, or the shards of model.safetensors.index.json.

        Raises InvalidFile if weights are missing, truncated, contradictory or pickled.
        """
        single = folder / SINGLE
        index = folder / INDEX
        require_folder(folder)
        if single.exists():  # which the class prefers, whatever an index says
            return Checkpoint(folder, read_header(single), (INDEX,) if index.exists() else ())
        if not index.exists():
            raise no_weights(folder)
        return Checkpoint(folder, read_shards(folder, index))

    def require(self, name: str, shape: Iterable[int]) -> TensorEntry:
        """Return the entry of tensor `name`; raise InvalidFile unless it has `shape` and is F32, BF16 or F16."""
        expected = f"{' or '.join(NUMPY)} {list(shape)}"
        entry = self.tensors.get(name)
        if entry is None:
            quantized = f"{name.removesuffix('weight')}qweight"  # as GPTQ and AWQ name it
            found = f"{quantized}, of a quantised checkpoint" if quantized in self.tensors else "no such tensor"
            raise InvalidFile(self.folder, expected, found, key=f"tensor {name}")
        if entry.dtype not in NUMPY or entry.shape != tuple(shape):
            found = f"{entry.dtype} {list(entry.shape)}"
            raise InvalidFile(entry.file, expected, found, key=f"tensor {name}")
        self._required.add(name)
        return entry

    def unused(self) -> list[str]:
        """Return the names of the tensors that were never passed to `require`."""
        return [name for name in self.tensors if name not in self._required]

    def rename(self, name: str, new_name: str) -> None:
        """Give tensor `name` another name."""
        self.tensors[new_name] = self.tensors.pop(name)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read rows `start` to `stop` of tensor `name` as stored: float32, float16 or bfloat16 (ml_dtypes).

        Raises InvalidFile if the file ends early or cannot be read.
        """
        entry = self.tensors[name]
        if not 0 <= start <= stop <= entry.shape[0]:
            raise ValueError(f"{name}: rows {start}..{stop} of {entry.shape}")
        rows = np.empty((stop - start, *entry.shape[1:]), NUMPY[entry.dtype])
        row_bytes = entry.nbytes // max(entry.shape[0], 1)
        self.read_into(entry, start * row_bytes, rows.reshape(-1).view(np.uint8))
        return rows

    def read_ahead(self, name: str) -> None:
        """Ask the disk to begin reading tensor `name`; return at once, and never fail."""
        entry = self.tensors[name]
        with suppress(OSError), entry.file.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), entry.offset, min(AHEAD, entry.nbytes), os.POSIX_FADV_WILLNEED)

    def read_into(self, entry: TensorEntry, skip: int, target: np.ndarray) -> None:
        """Fill `target` (uint8, 1-D) with the bytes of `entry` that follow its first `skip`.

        Raises InvalidFile if the file ends early or cannot be read.
        """
        if isinstance(entry, JoinedEntry):
            target[:] = self._join(entry)[skip : skip + len(target)]
            return
        view = target.data
        done = 0
        try:
            with entry.file.open("rb", buffering=0) as file:
                following = skip + len(view)
                if ahead := min(AHEAD, entry.nbytes - following):  # advice for 0 bytes would be for all of the file
                    os.posix_fadvise(file.fileno(), entry.offset + following, ahead, os.POSIX_FADV_WILLNEED)
                file.seek(entry.offset + skip)
                while done < len(view):
                    count = file.readinto(view[done:])
                    if not count:
                        break
                    done += count
                os.posix_fadvise(file.fileno(), entry.offset, following, os.POSIX_FADV_DONTNEED)
        except OSError as e:
            raise InvalidFile(entry.file, "readable data", e.strerror, key=f"tensor {entry.name}") from e
        if done != len(view):
            expected = f"{entry.offset + entry.nbytes} bytes (tensor {entry.name})"
            raise InvalidFile(entry.file, expected, "an earlier end of file")

    def _join(self, entry: JoinedEntry) -> np.ndarray:
        """Return the bytes of a tensor that is made of others, uint8 (bytes)."""
        arrays = []
        for part in entry.parts:
            array = np.empty(part.shape, NUMPY[part.dtype])
            self.read_into(part, 0, array.reshape(-1).view(np.uint8))
            arrays.append(array.T if entry.transposed else array)
        return np.ascontiguousarray(np.concatenate(arrays)).reshape(-1).view(np.uint8)


def read_shards(folder: Path, index: Path) -> dict[str, TensorEntry]:
    """Return the tensors of every shard that `index` names, by their names in the shards.

    Shard files may be symbolic links (a hub cache is made of them); their names may not leave the folder. Where a
    tensor lies is for the shards to say: of the index, the class too reads the files' names alone.

    Raises InvalidFile for a malformed index, a shard that is missing or damaged, or a tensor in two shards.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidFile(index, "an object of tensor and file names", one_line(weight_map), key="weight_map")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or "\\" in file or not file.isprintable():
            key = f"weight_map.{one_line(name)}"
            raise InvalidFile(index, "a file name in this folder", one_line(file), key=key)
        if not file.endswith(".safetensors"):
            raise InvalidFile(index, "a .safetensors file", one_line(file), key=f"weight_map.{one_line(name)}")
    tensors: dict[str, TensorEntry] = {}
    for file in sorted(set(weight_map.values())):
        shard = read_header(folder / file)
        for name, entry in shard.items():
            if name in tensors:
                key = f"tensor {one_line(name)}"
                raise InvalidFile(
                    folder / file, "each tensor in one shard", f"it in {tensors[name].file.name} too", key
                )
            tensors[name] = entry
    return tensors


def no_weights(folder: Path) -> InvalidFile:
    """Return the error for a folder without safetensors weights."""
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    found = f"{one_line(pickled[0])} (a pickled checkpoint is never unpickled)" if pickled else "neither"
    return InvalidFile(folder, f"{SINGLE} or {INDEX}", found)
