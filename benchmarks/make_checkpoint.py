"""Write a checkpoint of random weights in the published layout, for benchmarks.

    python benchmarks/make_checkpoint.py scratch/m600

About 600 M parameters, with the released model's proportions: a dense layer before sparse ones, text experts wider
than vision experts, k = 6, shared experts, GQA, a 14-pixel vision encoder. Tokenizer and processors are mini-ernie's.
"""

import json
import shutil
from pathlib import Path

import click
import numpy as np
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.layout import expected_tensors
from safetensors.numpy import save_file

MINI = Path(__file__).parent.parent / "examples" / "mini-ernie"
SHARD_BYTES = 2**29

TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "mlp_layer_types": ["dense"] + ["sparse"] * 11,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "moe_intermediate_size": [352, 128],
    "moe_num_experts": 32,
    "moe_k": 6,
    "vocab_size": 16384,
    "max_position_embeddings": 32768,
}
VISION = {"hidden_size": 512, "depth": 8, "num_heads": 8, "intermediate_size": 2048}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Write the checkpoint into FOLDER (2.5 GB, float32)."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in MINI.iterdir():
        if path.suffix in (".json", ".jinja", ".ttf") and "index" not in path.name:
            shutil.copyfile(path, folder / path.name)
    config = json.loads((MINI / "config.json").read_text())
    config["text_config"] |= TEXT
    config["text_config"]["rope_parameters"] |= {"mrope_section": [11, 11, 10]}
    config["vision_config"] |= VISION
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tensors = expected_tensors(ErnieConfig.from_hf(folder))
    rng = np.random.default_rng(0)
    shards: list[dict[str, np.ndarray]] = [{}]
    for name, shape in tensors.items():
        if sum(a.nbytes for a in shards[-1].values()) > SHARD_BYTES:
            write(folder, len(shards), shards[-1])
            shards[-1] = dict.fromkeys(shards[-1], np.zeros(0))  # names are kept for the index, values are not
            shards.append({})
        scale = 1 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.02
        values = rng.standard_normal(shape, np.float32) * np.float32(scale)
        shards[-1][name] = values + np.float32(name.endswith(("norm.weight", "norm1.weight", "norm2.weight")))
    write(folder, len(shards), shards[-1])
    index = {name: file_name(number) for number, shard in enumerate(shards, 1) for name in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    print(f"{folder}: {sum(int(np.prod(s)) for s in tensors.values()) / 1e6:.0f} M parameters")


def write(folder: Path, number: int, shard: dict[str, np.ndarray]) -> None:
    """Write one shard."""
    save_file(shard, folder / file_name(number), metadata={"format": "pt"})


def file_name(number: int) -> str:
    """Name of shard `number`."""
    return f"model-{number:05d}.safetensors"


if __name__ == "__main__":
    main()
