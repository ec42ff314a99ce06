"""Write the text part of a checkpoint in GGUF, in the precisions that llama.cpp's users choose, for compare.py.

    python benchmarks/make_checkpoint.py scratch/m600
    python benchmarks/make_gguf.py scratch/m600 scratch/m600-gguf --packages scratch/llama
    python benchmarks/compare.py scratch/m600 scratch/m600-int4 scratch/m600-gguf/*.gguf --packages scratch/llama

llama.cpp is built first where the folder of packages lacks it, for this machine's processor (llama_build.py; it needs
CMake and a C++ compiler). It knows ERNIE 4.5's text sibling (`ernie4_5-moe`): decoder, shared and text experts. Vision
encoder, resampler and vision experts stay behind, so it takes part in text alone; there the three axes of a position
are equal, and both models compute the same. llama.cpp itself quantizes, from float16; tensors whose rows are no
multiple of 256, as in the 650 M checkpoint, get another type than Q4_K by its choice. The vocabulary is left out: the
benchmark gives tokens by their ids.
"""

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import llama_build
import numpy as np

from ernie_export.common.processor import usable_cores
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.state_dict import EMBEDDING, HEAD, check_layout, expected_tensors

ARCHITECTURE = "ernie4_5-moe"
TYPES = ("Q4_0", "Q8_0", "Q4_K_S")  # names of llama.cpp's file types
# Names of GGUF and of the checkpoint, as llama.cpp's src/models/ernie4-5.cpp reads them.
ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
PROJECTIONS = {"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}


@dataclass(frozen=True)
class Tensor:
    """One tensor of the GGUF, in NumPy's order of axes, and where its values come from.

    Attributes:
        names: Tensors of the checkpoint; several are stacked.
        router: Stored as (hidden, experts) in the checkpoint, as (experts, hidden) here, and never quantized.
        rows: How many rows of a tensor count; 0 for all. The bias of the text experts is the first of two.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    router: bool = False
    rows: int = 0

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32 if self.router or len(self.shape) == 1 else np.float16)

    def read(self, checkpoint: Checkpoint) -> np.ndarray:
        """Return the values."""
        parts = [checkpoint.read_rows(name, 0, self.rows or checkpoint.tensors[name].shape[0]) for name in self.names]
        values = np.stack(parts) if len(parts) > 1 else parts[0]
        values = values.T if self.router else values.reshape(self.shape)
        return np.ascontiguousarray(values, self.dtype)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--packages", required=True, type=click.Path(path_type=Path), help="A folder to build llama.cpp into.")
@click.option("--type", "types", multiple=True, default=TYPES, show_default=True, help="Of a file. May be repeated.")
def main(checkpoint: Path, folder: Path, packages: Path, types: tuple[str, ...]) -> None:
    """Write FOLDER/TYPE.gguf of the CHECKPOINT for each type."""
    config = ErnieConfig.from_hf(checkpoint)
    metadata(config)  # refuses what llama.cpp can't run before it is built
    llama_build.build(packages)
    sys.path.append(str(packages))
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "F16.gguf"
    write(source, checkpoint, config)
    for name in types:
        if name != "F16":
            quantize(source, folder / f"{name}.gguf", name)
    if "F16" not in types:
        source.unlink()


def metadata(config: ErnieConfig) -> dict[str, int | float]:
    """Return what llama.cpp's load_hparams reads, without the architecture's name before each key."""
    text = config.text
    dense = text.layer_types.count("dense")
    if text.layer_types != ("dense",) * dense + ("sparse",) * (text.num_layers - dense):
        raise click.ClickException("text_config.mlp_layer_types: expected dense layers first, as llama.cpp does")
    if text.use_bias:
        raise click.ClickException("text_config.use_bias: expected false, as llama.cpp does")
    return {
        "vocab_size": text.vocab_size,
        "context_length": text.max_positions,
        "embedding_length": text.hidden_size,
        "block_count": text.num_layers,
        "feed_forward_length": text.intermediate_size,
        "attention.head_count": text.num_heads,
        "attention.head_count_kv": text.num_kv_heads,
        "attention.key_length": text.head_dim,
        "attention.value_length": text.head_dim,
        "attention.layer_norm_rms_epsilon": text.rms_norm_eps,
        "rope.dimension_count": text.head_dim,
        "rope.freq_base": text.rope_theta,
        "expert_count": text.num_experts,
        "expert_used_count": text.experts_per_token,
        "expert_feed_forward_length": text.moe_intermediate_size[0],
        "expert_shared_feed_forward_length": text.moe_intermediate_size[0] * text.num_shared_experts,
        "interleave_moe_layer_step": 1,
        "leading_dense_block_count": dense,
    }


def tensors(config: ErnieConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the GGUF by name."""
    shapes = expected_tensors(config)

    def one(name: str) -> Tensor:
        return Tensor(shapes[name], (name,))

    yield "token_embd.weight", one(EMBEDDING)
    for layer, kind in enumerate(config.text.layer_types):
        block, source = f"blk.{layer}", f"model.layers.{layer}"
        for theirs, ours in ATTENTION.items():
            yield f"{block}.{theirs}.weight", one(f"{source}.{ours}.weight")
        if kind == "dense":
            for theirs, ours in PROJECTIONS.items():
                yield f"{block}.{theirs}.weight", one(f"{source}.mlp.{ours}.weight")
            continue
        experts = config.text.num_experts
        router = f"{source}.mlp.gate.weight"
        yield f"{block}.ffn_gate_inp.weight", Tensor(shapes[router][::-1], (router,), router=True)
        bias = f"{source}.mlp.moe_statics.e_score_correction_bias"
        yield f"{block}.exp_probs_b.bias", Tensor((experts,), (bias,), rows=1)
        for theirs, ours in PROJECTIONS.items():
            names = tuple(f"{source}.mlp.experts.{expert}.{ours}.weight" for expert in range(experts))
            yield f"{block}.{theirs}_exps.weight", Tensor((experts, *shapes[names[0]]), names)
            if config.text.num_shared_experts:
                yield f"{block}.{theirs}_shexp.weight", one(f"{source}.mlp.shared_experts.{ours}.weight")
    yield "output_norm.weight", one("model.norm.weight")
    if not config.tie_word_embeddings:
        yield "output.weight", one(HEAD)


def write(path: Path, folder: Path, config: ErnieConfig) -> None:
    """Write a GGUF of float16, tensor by tensor, with the `gguf` package."""
    import gguf

    checkpoint = Checkpoint.open(folder)
    check_layout(checkpoint, config)
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    for key, value in metadata(config).items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{ARCHITECTURE}.{key}", value)
    writer.add_tokenizer_model("none")
    for name, tensor in tensors(config):
        nbytes = int(np.prod(tensor.shape)) * tensor.dtype.itemsize
        writer.add_tensor_info(name, tensor.shape, tensor.dtype, nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, tensor in tensors(config):
        writer.write_tensor_data(tensor.read(checkpoint))
    writer.close()


def quantize(source: Path, target: Path, name: str) -> None:
    """Have llama.cpp quantize a file to one of its types, with its defaults for each tensor."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    params.nthread = usable_cores()
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise click.ClickException(f"{target}: llama.cpp could not quantize {source}")


if __name__ == "__main__":
    main()
