"""Random architectures of the model, as config.json would describe them, for builders that need no weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ernie_export.graphs.config import ErnieConfig
from tests.paths import MINI

Document = dict[str, Any]
HEAD_DIMS = (16, 24, 32, 40, 48, 64, 72, 80, 96, 112, 128, 160, 192, 256)
VISION_HEAD_DIMS = (8, 16, 20, 24, 32, 36, 40, 48, 64, 72, 80, 96, 128, 160, 256)


def random_document(seed: int) -> Document:
    """Return the configuration number `seed`: two or three layers, widths that divide nothing in particular."""
    rng = np.random.default_rng(seed)

    def pick(*values: int) -> int:
        return int(rng.choice(values))

    document: Document = json.loads((MINI / "config.json").read_text())
    kv_heads = pick(1, 2, 3, 4, 5)
    group = pick(1, 2, 3, 5)
    dim = pick(*HEAD_DIMS)
    spatial = 2 * int(rng.integers(1, dim // 4))
    experts = pick(2, 3, 4, 7, 8, 16)
    text = document["text_config"]
    text |= {
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "head_dim": dim,
        "hidden_size": int(rng.integers(3, 40)) * 8,
        "intermediate_size": int(rng.integers(3, 70)) * 8,
        "moe_intermediate_size": [int(rng.integers(1, 30)) * 8, int(rng.integers(1, 20)) * 8],
        "moe_num_experts": experts,
        "moe_k": int(rng.integers(1, experts + 1)),
        "moe_num_shared_experts": pick(0, 1, 2),
        "use_bias": bool(rng.integers(2)),
        "mlp_layer_types": [["dense", "sparse"], ["sparse", "sparse", "dense"], ["dense", "dense"]][pick(0, 0, 1, 2)],
        "vocab_size": int(rng.integers(300, 2000)),
    }
    text["num_hidden_layers"] = len(text["mlp_layer_types"])
    text["rope_parameters"]["mrope_section"] = [spatial // 2, spatial // 2, dim // 2 - spatial]
    tie = bool(rng.integers(2))
    document["tie_word_embeddings"] = text["tie_word_embeddings"] = tie
    for name, number in (("image_token_id", 290), ("image_start_token_id", 291), ("image_end_token_id", 292)):
        document[name] = number
    for name, number in (("video_token_id", 293), ("video_start_token_id", 294), ("video_end_token_id", 295)):
        document[name] = number
    vision_heads = pick(1, 2, 3, 4, 6)
    document["vision_config"] |= {
        "depth": pick(1, 2),
        "num_heads": vision_heads,
        "hidden_size": vision_heads * pick(*VISION_HEAD_DIMS),
        "intermediate_size": int(rng.integers(2, 40)) * 8,
    }
    return document


def read_document(document: Document, folder: Path) -> ErnieConfig:
    """Return the configuration as an export reads it from a checkpoint."""
    (folder / "config.json").write_text(json.dumps(document))
    return ErnieConfig.from_hf(folder)
