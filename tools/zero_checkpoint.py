"""Checkpoints of zeros in sparse files, with sizes other than the mini checkpoint's."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.state_dict import expected_tensors

MINI = Path(__file__).resolve().parents[1] / "examples" / "mini-ernie"


def write_checkpoint(folder: Path, text: dict[str, Any], vision: dict[str, Any]) -> int:
    """A checkpoint of zeros with other sizes than mini-ernie's, as a sparse file; returns its bytes."""
    folder.mkdir()
    for path in MINI.iterdir():
        if "safetensors" not in path.name:
            shutil.copyfile(path, folder / path.name)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= text
    config["vision_config"] |= vision
    (folder / "config.json").write_text(json.dumps(config))
    members = {}
    end = 0
    for name, shape in expected_tensors(ErnieConfig.from_hf(folder)).items():
        members[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + 4 * int(np.prod(shape))]}
        end = members[name]["data_offsets"][1]
    header = json.dumps(members).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return end


def tiny_checkpoint(folder: Path) -> None:
    """The smallest that every stage takes: less than 260 KiB of weights, one layer, mini-ernie's tokenizer."""
    text = {"hidden_size": 16, "head_dim": 8, "rope_parameters": {"mrope_section": [1, 1, 2]}, "num_hidden_layers": 1}
    text |= {"mlp_layer_types": None, "intermediate_size": 8}
    assert write_checkpoint(folder, text, {"hidden_size": 16, "depth": 1, "intermediate_size": 8}) < 260 * 2**10
