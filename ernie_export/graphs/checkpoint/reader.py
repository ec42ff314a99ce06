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


# The encoder's names begin with `vision_model.` in the original revision, with `model.vision_model.` in what
# save_pretrained writes; the class loads both.
ORIGINAL_ENCODER = "vision_model."


class Checkpoint:
    """The tensors of one checkpoint folder. `tensors` maps every name, as save_pretrained writes it, to its entry."""

    def __init__(self, folder: Path, tensors: Mapping[str, TensorEntry]) -> None:
        self.folder = folder
        self.tensors = {
            f"model.{name}" if name.startswith(ORIGINAL_ENCODER) else name: entry for name, entry in tensors.items()
        }
        if len(self.tensors) != len(tensors):
            twice = next(name for name in tensors if name.startswith(ORIGINAL_ENCODER) and f"model.{name}" in tensors)
            raise InvalidFile(folder, f"tensor {twice} under one name", f"model.{twice} too")
        self._required: set[str] = set()

    @staticmethod
    def open(folder: Path) -> "Checkpoint":
        """Read the headers of `folder`'s weights: model.safetensors, or the shards of model.safetensors.index.json.

        Raises InvalidFile if weights are missing, truncated, contradictory or pickled.
        """
        single, index = folder / SINGLE, folder / INDEX
        require_folder(folder)
        if single.exists() and index.exists():
            raise InvalidFile(folder, f"{SINGLE} or {INDEX}", "both")
        if single.exists() or not index.exists():
            if not single.exists():
                raise no_weights(folder)
            return Checkpoint(folder, read_header(single))
        return Checkpoint(folder, read_shards(folder, index))

    def require(self, name: str, shape: Iterable[int]) -> TensorEntry:
        """Return the entry of tensor `name`; raise InvalidFile unless it has `shape` and is F32, BF16 or F16."""
        expected = f"{' or '.join(NUMPY)} {list(shape)}"
        entry = self.tensors.get(name)
        if entry is None:
            raise InvalidFile(self.folder, expected, "no such tensor", key=f"tensor {name}")
        if entry.dtype not in NUMPY or entry.shape != tuple(shape):
            found = f"{entry.dtype} {list(entry.shape)}"
            raise InvalidFile(entry.file, expected, found, key=f"tensor {name}")
        self._required.add(name)
        return entry

    def unused(self) -> list[str]:
        """Return the names of the tensors that were never passed to `require`."""
        return [name for name in self.tensors if name not in self._required]

    def refuse_unused(self) -> None:
        """Raise InvalidFile naming the first tensor that the model does not have."""
        unused = self.unused()
        if unused:
            more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
            file = self.tensors[unused[0]].file
            raise InvalidFile(file, "only tensors that config.json calls for", f"{one_line(unused[0])}{more}")

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


def read_shards(folder: Path, index: Path) -> dict[str, TensorEntry]:
    """Return the tensors of every shard that `index` names; raise InvalidFile where index and shards disagree.

    Shard files may be symbolic links (a hub cache is made of them); their names may not leave the folder. The index's
    `total_size` is not compared: loaders never read it, and every tensor's size is checked against its shard.
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
            if weight_map.get(name) != file:
                expected = one_line(weight_map.get(name, "no such tensor"))
                key = f"tensor {one_line(name)}"
                raise InvalidFile(folder / file, f"{expected} by {INDEX}", "it here", key=key)
            tensors[name] = entry
    for name, file in weight_map.items():
        if name not in tensors:
            raise InvalidFile(folder / file, f"tensor {one_line(name)} by {INDEX}", "no such tensor")
    return tensors


def no_weights(folder: Path) -> InvalidFile:
    """Return the error for a folder without safetensors weights."""
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    found = f"{one_line(pickled[0])} (a pickled checkpoint is never unpickled)" if pickled else "neither"
    return InvalidFile(folder, f"{SINGLE} or {INDEX}", found)
