"""The Hugging Face tensor layout: every name and shape that a checkpoint of a given configuration holds.

Measured on what `save_pretrained` of `Ernie4_5_VLMoeForConditionalGeneration` writes (transformers 5.23): the router
bias is always there, `lm_head.weight` exactly when untied, `use_bias` gives the decoder's attention and MLP projections
a bias but never the routed experts, and every linear layer of vision encoder and resampler but the patch embedding has
one.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ernie_export.common.errors import InvalidFile
from ernie_export.common.json_fields import one_line
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.config import ErnieConfig, TextConfig

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
COMPARED = 2**20  # values of the head and the embedding that are compared at a time
Named = Iterator[tuple[str, tuple[int, ...]]]


def expected_tensors(config: ErnieConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by name, matrices as (out, in) but for the routers' (hidden, experts)."""
    return dict(iter_tensors(config))


def check_layout(checkpoint: Checkpoint, config: ErnieConfig) -> tuple[tuple[Path, str], ...]:
    """Compare a checkpoint with its configuration.

    A tied model may have a copy of its embedding as `lm_head.weight`, or that alone.

    Returns:
        File and name of each tensor that the model does not have, or that repeats another: the class ignores them.

    Raises:
        InvalidFile: A tensor is missing or misshapen, or the head of a tied model differs from the embedding.
    """
    if config.tie_word_embeddings and HEAD in checkpoint.tensors and EMBEDDING not in checkpoint.tensors:
        checkpoint.rename(HEAD, EMBEDDING)
    for name, shape in iter_tensors(config):
        checkpoint.require(name, shape)
    unused = checkpoint.unused()
    if config.tie_word_embeddings and HEAD in unused:
        check_tied_head(checkpoint, config)
    return tuple((checkpoint.tensors[name].file, f"tensor {one_line(name)}") for name in unused)


def check_tied_head(checkpoint: Checkpoint, config: ErnieConfig) -> None:
    """Raise InvalidFile unless the head of a tied model has the embedding's values: the class would not tie it."""
    rows = config.text.vocab_size
    width = config.text.hidden_size
    entry = checkpoint.require(HEAD, (rows, width))
    step = max(COMPARED // width, 1)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        head = checkpoint.read_rows(HEAD, start, stop)
        embedding = checkpoint.read_rows(EMBEDDING, start, stop)
        if not np.array_equal(head, embedding):
            expected = "the embedding's values, as tie_word_embeddings is true"
            raise InvalidFile(entry.file, expected, "others", key=f"tensor {HEAD}")


def iter_tensors(config: ErnieConfig) -> Named:
    """Yield the items of `expected_tensors` one by one."""
    text = config.text
    yield EMBEDDING, (text.vocab_size, text.hidden_size)
    for layer, kind in enumerate(text.layer_types):
        yield from decoder_layer(text, f"model.layers.{layer}", sparse=kind == "sparse")
    yield "model.norm.weight", (text.hidden_size,)
    if not config.tie_word_embeddings:
        yield HEAD, (text.vocab_size, text.hidden_size)
    yield from vision_encoder(config, "model.vision_model")
    yield from resampler(config, "model.resampler_model")


def linear(name: str, out_size: int, in_size: int, bias: bool) -> Named:
    """Yield a linear layer: (out, in) weight and, with `bias`, an (out,) bias."""
    yield f"{name}.weight", (out_size, in_size)
    if bias:
        yield f"{name}.bias", (out_size,)


def swiglu(name: str, hidden: int, width: int, bias: bool) -> Named:
    """Yield the three projections of a gated MLP."""
    yield from linear(f"{name}.gate_proj", width, hidden, bias)
    yield from linear(f"{name}.up_proj", width, hidden, bias)
    yield from linear(f"{name}.down_proj", hidden, width, bias)


def layer_norm(name: str, size: int) -> Named:
    """Yield weight and bias of a LayerNorm."""
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)


def decoder_layer(text: TextConfig, name: str, sparse: bool) -> Named:
    """Yield one decoder layer. Experts have one numbering: text experts first, then vision experts."""
    hidden = text.hidden_size
    bias = text.use_bias
    query, key = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    yield f"{name}.input_layernorm.weight", (hidden,)
    yield from linear(f"{name}.self_attn.q_proj", query, hidden, bias)
    yield from linear(f"{name}.self_attn.k_proj", key, hidden, bias)
    yield from linear(f"{name}.self_attn.v_proj", key, hidden, bias)
    yield from linear(f"{name}.self_attn.o_proj", hidden, query, bias)
    yield f"{name}.post_attention_layernorm.weight", (hidden,)
    if not sparse:
        yield from swiglu(f"{name}.mlp", hidden, text.intermediate_size, bias)
        return
    yield f"{name}.mlp.gate.weight", (hidden, text.num_experts)
    yield f"{name}.mlp.gate.weight_1", (hidden, text.num_experts)
    yield f"{name}.mlp.moe_statics.e_score_correction_bias", (2, text.num_experts)
    for group, width in enumerate(text.moe_intermediate_size):
        for expert in range(group * text.num_experts, (group + 1) * text.num_experts):
            yield from swiglu(f"{name}.mlp.experts.{expert}", hidden, width, bias=False)
    if text.num_shared_experts:
        width = text.moe_intermediate_size[0] * text.num_shared_experts
        yield from swiglu(f"{name}.mlp.shared_experts", hidden, width, bias)


def vision_encoder(config: ErnieConfig, name: str) -> Named:
    """Yield patch embedding, blocks and the closing LayerNorm."""
    vision = config.vision
    hidden = vision.hidden_size
    yield from linear(f"{name}.patch_embed.proj", hidden, vision.in_channels * vision.patch_size**2, bias=False)
    for block in range(vision.depth):
        yield from layer_norm(f"{name}.blocks.{block}.norm1", hidden)
        yield from linear(f"{name}.blocks.{block}.attn.qkv", 3 * hidden, hidden, bias=True)
        yield from linear(f"{name}.blocks.{block}.attn.proj", hidden, hidden, bias=True)
        yield from layer_norm(f"{name}.blocks.{block}.norm2", hidden)
        yield from linear(f"{name}.blocks.{block}.mlp.fc1", vision.intermediate_size, hidden, bias=True)
        yield from linear(f"{name}.blocks.{block}.mlp.fc2", hidden, vision.intermediate_size, bias=True)
    yield from layer_norm(f"{name}.ln", hidden)


def resampler(config: ErnieConfig, name: str) -> Named:
    """Yield spatial merge, temporal merge, projection to the decoder's width and the closing RMSNorm."""
    vision = config.vision
    hidden = config.text.hidden_size
    merged = vision.hidden_size * vision.spatial_merge_size**2
    for part, in_size in (("spatial_linear", merged), ("temporal_linear", merged * vision.temporal_merge_size)):
        yield from linear(f"{name}.{part}.0", merged, in_size, bias=True)
        yield from linear(f"{name}.{part}.2", merged, merged, bias=True)
        yield from layer_norm(f"{name}.{part}.3", merged)
    yield from linear(f"{name}.mlp", hidden, merged, bias=True)
    yield f"{name}.after_norm.weight", (hidden,)
