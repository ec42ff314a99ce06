"""Write a checkpoint of random weights in the hf layout, for benchmarks.

    python benchmarks/make_checkpoint.py scratch/m600
    python benchmarks/make_checkpoint.py scratch/full --shape full --holes
    python benchmarks/make_checkpoint.py /mnt/xfs/full --shape full --clone

| shape | parameters | dtype | what |
| --- | --- | --- | --- |
| tiny | 2 M | float32 | mini-ernie's vision, and expert widths that the kernels of every precision take |
| m600 | 650 M | float32 | the released model's proportions: small enough for PyTorch in float32 beside it |
| full | 29.4 B | bfloat16 | the released model's shape, 54.8 GiB; `--layers 2` keeps its widths |

Values are cut from a pool of random numbers, one for each width that a product sums over, from another place for every
tensor: routing spreads over the experts, activations stay finite through any depth, and writing is as fast as the disk.
With `--holes` the vision experts (23 % of the released shape) are holes in sparse files, which read as zeros and
take no room. With `--clone`, on a file system whose files can share blocks (XFS, Btrfs), tensors of whole pages share
those of the pools: the released shape takes 0.2 GiB and five seconds, with values in every expert. Processors are
mini-ernie's, the tokenizer's vocabulary is filled up to the model's.
"""

import fcntl
import json
import math
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click
import ml_dtypes
import numpy as np
from rich.progress import Progress

from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.state_dict import expected_tensors

MINI = Path(__file__).parent.parent / "examples" / "mini-ernie"
PAGE = 4096
FICLONERANGE = 0x4020940D  # linux/fs.h: shares a range of one file's blocks with another file
POOL = 2**23 + 9  # values: no multiple of any width, so that rows of a larger tensor differ
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "dtype": "float32",
        "shard_bytes": 2**24,
        "image_pixels": 64 * 196,
        "text": {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "moe_intermediate_size": [128, 64],
            "moe_num_experts": 8,
            "moe_k": 2,
            "vocab_size": 1700,
            "max_position_embeddings": 4096,
            "mrope_section": [6, 6, 4],
        },
        "vision": {"hidden_size": 96, "depth": 2, "num_heads": 4, "intermediate_size": 384},
    },
    "m600": {
        "dtype": "float32",
        "shard_bytes": 2**29,
        "image_pixels": 64 * 196,
        "text": {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "moe_intermediate_size": [352, 128],
            "moe_num_experts": 32,
            "moe_k": 6,
            "vocab_size": 16384,
            "max_position_embeddings": 32768,
            "mrope_section": [11, 11, 10],
        },
        "vision": {"hidden_size": 512, "depth": 8, "num_heads": 8, "intermediate_size": 2048},
    },
    "full": {
        "dtype": "bfloat16",
        "shard_bytes": 5 * 10**9,
        "image_pixels": 4842768,
        "text": {
            "hidden_size": 2560,
            "intermediate_size": 12288,
            "num_hidden_layers": 28,
            "num_attention_heads": 20,
            "num_key_value_heads": 4,
            "moe_intermediate_size": [1536, 512],
            "moe_num_experts": 64,
            "moe_k": 6,
            "vocab_size": 103424,
            "max_position_embeddings": 131072,
            "mrope_section": [22, 22, 20],
        },
        "vision": {"hidden_size": 1280, "depth": 32, "num_heads": 16, "intermediate_size": 5120},
    },
}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--shape", type=click.Choice(list(SHAPES)), default="m600", show_default=True)
@click.option("--layers", type=int, help="Decoder layers instead of the shape's own number.")
@click.option("--holes", is_flag=True, help="Leave the vision experts as holes in the files.")
@click.option("--clone", is_flag=True, help="Share random values between tensors by reflinks, on XFS or Btrfs.")
def main(folder: Path, shape: str, layers: int | None, holes: bool, clone: bool) -> None:
    """Write the checkpoint into FOLDER."""
    parameters = write_checkpoint(folder, SHAPES[shape], layers, holes, clone=clone)
    print(f"{folder}: {parameters / 1e6:.0f} M parameters")


def write_checkpoint(
    folder: Path,
    sizes: dict[str, Any],
    layers: int | None = None,
    holes: bool = False,
    pool: int = POOL,
    clone: bool = False,
) -> int:
    """Write a checkpoint of a shape, from `pool` random values, the same every time; returns its parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    write_settings(folder, sizes, layers or sizes["text"]["num_hidden_layers"])
    config = ErnieConfig.from_hf(folder)
    dtype = np.dtype(np.float32 if sizes["dtype"] == "float32" else ml_dtypes.bfloat16)
    vision_experts = range(config.text.num_experts, 2 * config.text.num_experts) if holes else range(0)
    empty = tuple(f".experts.{expert}." for expert in vision_experts)
    tensors = expected_tensors(config)
    values = ClonedValues(dtype, pool, folder) if clone else Values(dtype, pool)
    index: dict[str, str] = {}
    with Progress() as bars:
        task = bars.add_task(f"{folder}", total=sum(map(math.prod, tensors.values())) * dtype.itemsize)
        for number, shard in enumerate(shards(tensors, dtype, sizes["shard_bytes"]), 1):
            name = f"model-{number:05d}.safetensors"
            index |= dict.fromkeys(shard, name)
            if clone:  # whole pages first, so that they begin at a page of the file
                shard = dict(sorted(shard.items(), key=lambda item: math.prod(item[1]) * dtype.itemsize % PAGE != 0))
            with (folder / name).open("wb") as file:
                write_header(file, shard, dtype)
                for tensor, size in shard.items():
                    nbytes = math.prod(size) * dtype.itemsize
                    if any(mark in tensor for mark in empty):
                        file.truncate(file.seek(nbytes, 1))
                    else:
                        values.write(file, tensor, size)
                    bars.advance(task, nbytes)
    values.close()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sum(map(math.prod, tensors.values()))


def write_settings(folder: Path, sizes: dict[str, Any], layers: int) -> None:
    """Configuration, processors and a tokenizer with as many tokens as the model has."""
    for path in MINI.iterdir():
        if path.suffix in (".json", ".jinja", ".ttf") and "index" not in path.name:
            shutil.copyfile(path, folder / path.name)
    text = sizes["text"] | {
        "num_hidden_layers": layers,
        "mlp_layer_types": ["dense"] + ["sparse"] * (layers - 1),
        "moe_num_shared_experts": 2,
    }
    config = json.loads((MINI / "config.json").read_text())
    config["text_config"]["rope_parameters"] |= {"mrope_section": text.pop("mrope_section")}
    config["text_config"] |= text
    config["vision_config"] |= sizes["vision"]
    config["dtype"] = sizes["dtype"]
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    processor = json.loads((MINI / "preprocessor_config.json").read_text())
    processor["size"] = {"shortest_edge": 3136, "longest_edge": sizes["image_pixels"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1))
    tokenizer = json.loads((MINI / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    # A special token that the vocabulary lacks would get the number of its entries as its id, fillers counted.
    vocabulary |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    taken = set(vocabulary.values())
    vocabulary |= {f"▁filler{token}": token for token in range(text["vocab_size"]) if token not in taken}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))


def shards(tensors: dict[str, tuple[int, ...]], dtype: np.dtype, limit: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """The tensors in files of at most about `limit` bytes."""
    shard: dict[str, tuple[int, ...]] = {}
    total = 0
    for name, size in tensors.items():
        nbytes = math.prod(size) * dtype.itemsize
        if shard and total + nbytes > limit:
            yield shard
            shard = {}
            total = 0
        shard[name] = size
        total += nbytes
    yield shard


def write_header(file: BinaryIO, shard: dict[str, tuple[int, ...]], dtype: np.dtype) -> None:
    """The safetensors header, padded to a page: whole pages of a tensor can then be holes."""
    members = {}
    end = 0
    for name, size in shard.items():
        start, end = end, end + math.prod(size) * dtype.itemsize
        kind = "F32" if dtype == np.float32 else "BF16"
        members[name] = {"dtype": kind, "shape": size, "data_offsets": [start, end]}
    text = json.dumps(members).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    file.write(len(text).to_bytes(8, "little") + text)


class Values:
    """Random values: matrices scaled so that products keep their size, norms around 1, others near 0."""

    def __init__(self, dtype: np.dtype, size: int) -> None:
        self.dtype = dtype
        self.size = size
        self.rng = np.random.default_rng(0)
        self.normal = self.rng.standard_normal(size, np.float32)
        self.pools: dict[float, bytes] = {}

    def write(self, file: BinaryIO, name: str, size: tuple[int, ...]) -> None:
        """Append one tensor."""
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "ln.weight")):
            file.write((1 + 0.02 * self.normal[: math.prod(size)]).astype(self.dtype).tobytes())
            return
        # Routers are stored as (hidden, experts), all other matrices as (out, in).
        summed = size[0] if name.endswith(("mlp.gate.weight", "mlp.gate.weight_1")) else size[-1]
        scale = 1 / math.sqrt(summed) if len(size) > 1 else 0.02
        if name.endswith("e_score_correction_bias"):  # below a probability of one of 64 experts
            scale = 0.01
        start = int(self.rng.integers(self.size)) * self.dtype.itemsize
        self.append(file, scale, start, math.prod(size) * self.dtype.itemsize)

    def append(self, file: BinaryIO, scale: float, start: int, left: int) -> None:
        """Append `left` bytes of the pool at a scale, from byte `start` on."""
        pool = self.pool(scale)
        while left:
            done = file.write(pool[start : start + left])
            start, left = (start + done) % len(pool), left - done

    def pool(self, scale: float) -> memoryview:
        """The pool at one scale; made once."""
        if scale not in self.pools:
            self.pools[scale] = (self.normal * np.float32(scale)).astype(self.dtype).tobytes()
        return memoryview(self.pools[scale])

    def close(self) -> None:
        """Remove what the values need while they are written."""


class ClonedValues(Values):
    """Values whose whole pages share the blocks of files that hold the pools."""

    def __init__(self, dtype: np.dtype, size: int, folder: Path) -> None:
        super().__init__(dtype, size)
        self.folder = folder
        self.files: dict[float, BinaryIO] = {}

    def append(self, file: BinaryIO, scale: float, start: int, left: int) -> None:
        """Clone the pages; write what is not whole pages, or begins in the middle of one."""
        if left % PAGE or file.tell() % PAGE:
            super().append(file, scale, start, left)
            return
        pages = len(self.pool(scale)) // PAGE * PAGE
        start -= start % PAGE
        file.flush()
        while left:
            start %= pages
            done = min(left, pages - start)
            where = struct.pack("qQQQ", self.source(scale).fileno(), start, done, file.tell())
            try:
                fcntl.ioctl(file.fileno(), FICLONERANGE, where)
            except OSError as e:
                raise click.ClickException(f"--clone: {self.folder}: {e.strerror} (expected XFS or Btrfs)") from e
            file.seek(done, 1)
            start, left = start + done, left - done

    def source(self, scale: float) -> BinaryIO:
        """The pool at one scale as a file; written once."""
        if scale not in self.files:
            self.files[scale] = (self.folder / f"pool-{len(self.files)}").open("w+b")
            self.files[scale].write(self.pool(scale))
            self.files[scale].flush()
        return self.files[scale]

    def close(self) -> None:
        """Remove the pools' files: the tensors keep the blocks."""
        for file in self.files.values():
            file.close()
            Path(str(file.name)).unlink()


if __name__ == "__main__":
    main()
