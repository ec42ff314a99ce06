"""The parameters of the transformers class, made one at a time from the checkpoint's tensors.

The class stacks what a checkpoint stores apart (experts, gate and up) and renames the rest; the rules are those of
transformers' own conversion (`conversion_mapping.py`, "ernie4_5_vl_moe"). A test compares every parameter with what
`from_pretrained` loads.
"""

import re
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ernie_export.graphs.checkpoint.reader import Checkpoint

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
GROUPS = ("text_moe", "vision_moe")
RENAMED = (
    ("model.language_model.", "model."),
    ("model.vision_tower.", "model.vision_model."),
    ("_linear.fc1.", "_linear.0."),
    ("_linear.fc2.", "_linear.2."),
    ("_linear.ln.", "_linear.3."),
)


class TensorSource(Protocol):
    """Gives the tensors of a checkpoint by their names."""

    def read(self, name: str) -> NDArray[np.float32]:
        """Return a tensor."""
        ...

    def read_head(self) -> NDArray[np.float32]:
        """Return the head's weights (vocabulary, hidden), which may be the embedding's."""
        ...


class CheckpointTensors:
    """The tensors as the checkpoint has them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def read(self, name: str) -> NDArray[np.float32]:
        """Return a tensor. Raises InvalidFile if it cannot be read."""
        entry = self._checkpoint.tensors[name]
        tensor: NDArray[np.float32] = self._checkpoint.read_rows(name, 0, entry.shape[0]).astype(np.float32, copy=False)
        return tensor

    def read_head(self) -> NDArray[np.float32]:
        """Return the head's weights. Raises InvalidFile if they cannot be read."""
        return self.read(HEAD if HEAD in self._checkpoint.tensors else EMBEDDING)


def read_parameter(source: TensorSource, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a parameter of `Ernie4_5_VLMoeForConditionalGeneration` by its name, in `shape`."""
    if name == HEAD:
        return source.read_head()
    for found, saved in RENAMED:
        name = name.replace(found, saved, 1)
    match = re.fullmatch(r"(.+\.mlp)\.(text_moe|vision_moe)\.(.+)", name)
    if match is None:
        return source.read(name).reshape(shape)
    layer = match[1]
    group = GROUPS.index(match[2])
    if match[3] == "gate.weight":
        return np.transpose(source.read(f"{layer}.gate.weight" + ("_1" if group else "")))
    if match[3] == "gate.moe_statics.e_score_correction_bias":
        return source.read(f"{layer}.moe_statics.e_score_correction_bias")[group : group + 1]
    stacked = np.empty(shape, np.float32)
    for index in range(shape[0]):
        expert = f"{layer}.experts.{group * shape[0] + index}"
        if match[3] == "experts.down_proj":
            stacked[index] = source.read(f"{expert}.down_proj.weight")
        else:
            half = shape[1] // 2
            stacked[index, :half] = source.read(f"{expert}.gate_proj.weight")
            stacked[index, half:] = source.read(f"{expert}.up_proj.weight")
    return stacked
