"""A checkpoint that computes what another does, with much larger activations in a few channels.

Large language models have such channels, and a small one that was trained for an hour has not: rounding weights costs
the latter next to nothing.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ernie_export.graphs.checkpoint.reader import Checkpoint


def with_outliers(checkpoint: Path, output: Path, factor: float, share: float = 0.03) -> None:
    """A checkpoint in `output` that computes the same: `share` of the channels of every decoder norm's output and of
    every expert's and MLP's product are `factor` (a power of two: exact) times as large, the weights that read them as
    much smaller.
    """
    output.mkdir()
    for path in checkpoint.iterdir():
        if path.is_file() and "safetensors" not in path.name:
            shutil.copyfile(path, output / path.name)
    source = Checkpoint.open(checkpoint)
    tensors = {name: source.read_rows(name, 0, entry.shape[0]) for name, entry in source.tensors.items()}
    rng = np.random.default_rng(0)

    def channels(width: int) -> np.ndarray:
        return rng.choice(width, max(round(share * width), 1), replace=False)

    def scale(name: str, places: tuple[Any, ...], by: float) -> None:
        tensors[name][places] = (tensors[name][places].astype(np.float32) * by).astype(tensors[name].dtype)

    for name in list(tensors):
        layer, _, kind = name.rpartition(".layers.")[2].partition(".")
        prefix = f"model.layers.{layer}."
        if name.startswith("model.layers.") and kind in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            chosen = channels(len(tensors[name]))
            scale(name, (chosen,), factor)
            readers = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
            if kind.startswith("post"):
                readers = ("gate_proj.weight", "up_proj.weight")
                for router in {f"{prefix}mlp.gate.weight", f"{prefix}mlp.gate.weight_1"} & tensors.keys():
                    scale(router, (chosen,), 1 / factor)
            for reader in tensors:
                if reader.startswith(prefix) and reader.endswith(readers):
                    scale(reader, (slice(None), chosen), 1 / factor)
        if name.startswith("model.layers.") and name.endswith("down_proj.weight"):
            chosen = channels(tensors[name].shape[1])
            scale(name.replace("down_proj", "up_proj"), (chosen,), factor)
            scale(name, (slice(None), chosen), 1 / factor)
    save_file(tensors, output / "model.safetensors")
