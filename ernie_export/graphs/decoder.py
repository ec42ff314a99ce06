"""The decoder: token ids, vision features and a KV cache in, next-token logits and the cache out.

B sequences, S new tokens (right-padded where lengths differ), N vision features, C cache capacity (at least
tokens so far + S), H hidden size, K kv heads, D head size, V vocabulary. {i} runs over the layers.

| input | shape | dtype | meaning |
| --- | --- | --- | --- |
| input_ids | (B, S) | int64 | |
| feature_index * | (B, S) | int64 | 0: embed the token; n > 0: take row n - 1 of features instead |
| features * | (N, H) | float | the resampler's output, in any order that feature_index knows |
| token_types * | (B, S) | int64 | 0 text experts, otherwise vision experts (`moe_mm_token_type_ids`) |
| position_ids | (3, B, S) | int64 | temporal, height, width |
| past_lengths | (B,) | int64 | tokens already in the cache |
| lengths | (B,) | int64 | new tokens that are not padding |
| past_key.{i}, past_value.{i} | (B, K, C, D) | float | |
| output logits | (B, V) | float32 | after each sequence's last new token |
| output present_key.{i}, present_value.{i} | (B, K, C, D) | float | may be the past buffers themselves |

* absent from the decode graph (`vision=False`), which knows text tokens only and none of the vision experts.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.config import ErnieConfig, TextConfig
from ernie_export.graphs.layers.linear import add_rms_norm, linear, rms_norm
from ernie_export.graphs.layers.mlp import sparse, swiglu
from ernie_export.graphs.layers.quantized import quantized
from ernie_export.graphs.ops.mrope.reference import attention_scale, axes, inverse_frequencies
from ernie_export.graphs.precision import Precision
from ernie_export.graphs.weight_spec import Role

INT64, FLOAT = ir.DataType.INT64, ir.DataType.FLOAT


@dataclass(frozen=True)
class SharedInputs:
    """Inputs that all layers share.

    Attributes:
        split: The shape [B, S, -1].
        token_types: (B·S,); None for text alone.
        rotary: The rotation's constants.
        tables: q_cos, q_sin, k_cos and k_sin, (B, S, D/2) float32 each.
        capacity: C, shape (1,).
        mask: (B, 1, S, C), which tokens attend to which places of the cache.
    """

    split: ir.Value
    token_types: ir.Value | None
    rotary: dict[str, Any]
    tables: tuple[ir.Value, ...]
    capacity: ir.Value
    mask: ir.Value


def build(config: ErnieConfig, precision: Precision, vision: bool) -> GraphBuilder:
    """Build the decoder graph in `precision`; without `vision`, the decode graph."""
    text = config.text
    dtype = precision.dtype
    cache = ("batch", text.num_kv_heads, "capacity", text.head_dim)
    vision_inputs: list[tuple[str, ir.DataType, tuple[int | str, ...]]] = [
        ("feature_index", INT64, ("batch", "sequence")),
        ("features", dtype, ("features", text.hidden_size)),
        ("token_types", INT64, ("batch", "sequence")),
    ]
    g = GraphBuilder(
        "decoder" if vision else "decode",
        dtype,
        [
            ("input_ids", INT64, ("batch", "sequence")),
            *(vision_inputs if vision else []),
            ("position_ids", INT64, (3, "batch", "sequence")),
            ("past_lengths", INT64, ("batch",)),
            ("lengths", INT64, ("batch",)),
            *((f"past_{part}.{i}", dtype, cache) for i in range(text.num_layers) for part in ("key", "value")),
        ],
        precision.decoder,
        precision.float8,
        precision.expert_tiles,
    )
    with g.scope("model"):
        hidden = embed(g, config, vision)
        token_types = None
        if vision:
            token_types = g.op("Reshape", g.inputs["token_types"], g.constant("flat", np.array([-1])), name="types")
        shared = shared_values(g, text, g.op("Shape", g.inputs["input_ids"]), token_types, g.inputs["past_key.0"])
        hidden = layers(g, text, hidden, shared)
        last = last_tokens(g, hidden, shared.split)
        last = rms_norm(g, last, "model.norm", text.hidden_size, text.rms_norm_eps)
    source = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    with g.scope("lm_head"):
        if precision.head:
            shape = text.vocab_size, text.hidden_size
            logits = quantized(g, last, "lm_head.weight", [source], *shape, precision.head, Role.HEAD)
        else:
            logits = g.op("Gemm", last, g.tensor(source, (text.vocab_size, text.hidden_size), Role.HEAD), transB=1)
        if dtype != FLOAT:
            logits = g.op("Cast", logits, to=FLOAT)
    # Declared outputs follow the inputs' order: logits, then every layer's cache.
    g.output(logits, "logits", FLOAT, ("batch", text.vocab_size))
    for index in range(text.num_layers):
        for part in ("key", "value"):
            value = g.named(f"/model/layers.{index}/self_attn/CachedAttention", ("", "key", "value").index(part))
            g.output(value, f"present_{part}.{index}", dtype, cache)
    return g


def embed(g: GraphBuilder, config: ErnieConfig, vision: bool) -> ir.Value:
    """Embed the tokens as (B·S, H), and put vision features at their positions."""
    table = g.tensor("model.embed_tokens.weight", (config.text.vocab_size, config.text.hidden_size), Role.EMBEDDING)
    with g.scope("embed_tokens"):
        flat = g.constant("flat", np.array([-1]))
        tokens = g.op("Gather", table, g.op("Reshape", g.inputs["input_ids"], flat, name="ids"), axis=0)
        if not vision:
            return tokens
        # A row of zeros stands at 0, so that text tokens have something to gather.
        zero = g.constant("zero", np.zeros((1, config.text.hidden_size), g.dtype.numpy()))
        index = g.op("Reshape", g.inputs["feature_index"], flat, name="index")
        rows = g.op("Gather", g.op("Concat", zero, g.inputs["features"], axis=0), index, axis=0, name="features")
        none = g.constant("none", np.array(0))
        is_text = g.op("Unsqueeze", g.op("Equal", index, none), g.constant("last", np.array([-1])), name="is_text")
        return g.op("Where", is_text, tokens, rows)


def shared_values(
    g: GraphBuilder, text: TextConfig, shape: ir.Value, token_types: ir.Value | None, past_key: ir.Value
) -> SharedInputs:
    """Compute what the layers share.

    Args:
        g: The graph.
        text: The decoder's configuration.
        shape: The shape [B, S] of the new tokens.
        token_types: (B·S,); None for text alone.
        past_key: Any layer's cached keys.
    """
    split = g.op("Concat", shape, g.constant("rest", np.array([-1])), axis=0, name="by_row")
    rotary = {
        "inv_freq": inverse_frequencies(text.head_dim, text.rope_theta).tolist(),
        "axes": axes(text.mrope_section).tolist(),
    }
    tables = g.custom("RotaryTables", g.inputs["position_ids"], **rotary, scale=float(attention_scale(text.head_dim)))
    capacity = g.op("Shape", past_key, start=2, end=3, name="capacity")
    (mask,) = g.custom("CausalMask", shape, g.inputs["past_lengths"], capacity)
    return SharedInputs(split, token_types, rotary, tables, capacity, mask)


def layers(g: GraphBuilder, text: TextConfig, hidden: ir.Value, shared: SharedInputs) -> ir.Value:
    """Add all decoder layers over hidden (B·S, H); each sum is normalized for the layer that comes next."""
    with g.scope("layers.0"):
        x = rms_norm(g, hidden, "model.layers.0.input_layernorm", text.hidden_size, text.rms_norm_eps)
    for index in range(text.num_layers):
        with g.scope(f"layers.{index}"):
            hidden, fed = layer(g, text, index, hidden, x, shared)
            if index + 1 < text.num_layers:
                norm = f"model.layers.{index + 1}.input_layernorm"
                hidden, x = add_rms_norm(g, hidden, fed, norm, text.hidden_size, text.rms_norm_eps, name="after_mlp")
            else:
                hidden = g.op("Add", hidden, fed, name="after_mlp")
    return hidden


def layer(
    g: GraphBuilder, text: TextConfig, index: int, hidden: ir.Value, x: ir.Value, shared: SharedInputs
) -> tuple[ir.Value, ir.Value]:
    """Add one pre-norm decoder layer, without its first norm and its last sum, which layers have in common.

    Args:
        g: The graph.
        text: The decoder's configuration.
        index: The layer's number.
        hidden: The residual stream (B·S, H).
        x: `hidden` after the layer's `input_layernorm`.
        shared: What all layers share.

    Returns:
        The two values whose sum is the layer's output: the stream after attention, and what the MLP computes.
    """
    prefix = f"model.layers.{index}"
    with g.scope("self_attn"):
        attended = attention(g, text, index, x, shared)
    norm = f"{prefix}.post_attention_layernorm"
    hidden, x = add_rms_norm(g, hidden, attended, norm, text.hidden_size, text.rms_norm_eps, name="after_attention")
    if text.layer_types[index] == "sparse":
        fed = sparse(g, x, shared.token_types, f"{prefix}.mlp", text)
    else:
        fed = swiglu(g, x, f"{prefix}.mlp", text.hidden_size, text.intermediate_size, text.use_bias)
    return hidden, fed


def attention(g: GraphBuilder, text: TextConfig, index: int, x: ir.Value, shared: SharedInputs) -> ir.Value:
    """Add rotated, cached, causal attention over x (B·S, H)."""
    prefix = f"model.layers.{index}.self_attn"
    width = text.num_heads * text.head_dim
    kv_width = text.num_kv_heads * text.head_dim
    parts = [f"{prefix}.{name}_proj" for name in "qkv"]
    x = linear(g, x, f"{prefix}.qkv_proj", width + 2 * kv_width, text.hidden_size, text.use_bias, parts)
    sizes = g.constant("sizes", np.array([width, kv_width, kv_width]))
    by_row = g.op("Reshape", x, shared.split, name="by_row")
    q, k, v = g.op_outputs("Split", by_row, sizes, axis=2, outputs=3, name="qkv")
    heads = {"num_heads": text.num_heads, "kv_num_heads": text.num_kv_heads}
    q, k = g.custom("MultimodalRope", q, k, g.inputs["position_ids"], *shared.tables, **shared.rotary, **heads)
    past = [g.inputs[f"past_{part}.{index}"] for part in ("key", "value")]
    lengths = [g.inputs["past_lengths"], g.inputs["lengths"]]
    y, _, _ = g.custom("CachedAttention", q, k, v, *past, *lengths, shared.capacity, shared.mask, **heads)
    flat = g.op("Reshape", y, g.constant("flat", np.array([-1, width])), name="y_flat")
    return linear(g, flat, f"{prefix}.o_proj", text.hidden_size, width, text.use_bias)


def last_tokens(g: GraphBuilder, hidden: ir.Value, split: ir.Value) -> ir.Value:
    """Select (B, H) of hidden (B·S, H): each sequence's last new token."""
    by_row = g.op("Reshape", hidden, split, name="hidden_by_row")
    last = g.op("Sub", g.inputs["lengths"], g.constant("one", np.array(1)), name="last_index")
    index = g.op("Unsqueeze", last, g.constant("second", np.array([1])), name="last_column")
    return g.op("GatherND", by_row, index, batch_dims=1, name="last")
