"""One decoder layer as a graph of its own, and what its linear layers and experts are given.

Its weights are in 8 bits: a quarter of the memory of float32, for an error in the statistics of about half a per cent.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from ernie_export.exporter.calibration.prompts import Prompts
from ernie_export.exporter.weights import writer as weights
from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.config import TextConfig
from ernie_export.graphs.decoder import layer, shared_values
from ernie_export.graphs.layers.linear import rms_norm
from ernie_export.graphs.ops.bodies import OpBodies

INT64, FLOAT = ir.DataType.INT64, ir.DataType.FLOAT
BITS = 8
CHUNK_TOKENS = 512  # tokens of one call: attention forms scores of these by all tokens so far


@dataclass(frozen=True)
class LayerGraph:
    """One decoder layer as a graph.

    Attributes:
        graph: The graph.
        linear_inputs: The quantized weights that each linear input is multiplied by, by the name of the output that
            holds the input.
        experts: Whether there is an output "experts" (tokens, k), which numbers vision experts from E on.
    """

    graph: GraphBuilder
    linear_inputs: dict[str, list[str]]
    experts: bool


def build(text: TextConfig, index: int) -> LayerGraph:
    """Build layer `index` over hidden (tokens, H) of one conversation, with the outputs that `LayerGraph` names."""
    cache = (1, text.num_kv_heads, "capacity", text.head_dim)
    g = GraphBuilder(
        "layer",
        FLOAT,
        [
            ("hidden", FLOAT, ("tokens", text.hidden_size)),
            ("token_types", INT64, ("tokens",)),
            ("position_ids", INT64, (3, 1, "tokens")),
            ("past_lengths", INT64, (1,)),
            ("lengths", INT64, (1,)),
            *((f"past_{part}.{index}", FLOAT, cache) for part in ("key", "value")),
        ],
        BITS,
    )
    shape = g.op("Shape", g.inputs["position_ids"], start=1)
    shared = shared_values(g, text, shape, g.inputs["token_types"], g.inputs[f"past_key.{index}"])
    hidden = g.inputs["hidden"]
    normalized = rms_norm(g, hidden, f"model.layers.{index}.input_layernorm", text.hidden_size, text.rms_norm_eps)
    after = g.op("Add", *layer(g, text, index, hidden, normalized, shared), name="after_mlp")
    multiplied: dict[ir.Value, list[str]] = {}
    experts = None
    for node in g.graph:
        names = [v.name for v in node.inputs if v is not None and v.name in g.weights]
        if quantized := [name for name in names if g.weights[name].quantization]:
            x = node.inputs[0]
            assert x is not None
            multiplied.setdefault(x, []).extend(quantized)
        if node.op_type == "QuantizedMoEDispatch":
            experts = node.outputs[1]
    g.output(after, "after", FLOAT, ("tokens", text.hidden_size))
    for number, part in enumerate(("key", "value"), 1):
        g.output(g.named("/self_attn/CachedAttention", number), f"present_{part}", FLOAT, cache)
    linear_inputs = {}
    for number, (value, names) in enumerate(multiplied.items()):
        linear_inputs[f"linear_input_{number}"] = names
        g.output(value, f"linear_input_{number}", FLOAT, ("tokens", f"width_{number}"))
    if experts is not None:
        g.output(experts, "experts", INT64, ("tokens", text.experts_per_token))
    return LayerGraph(g, linear_inputs, experts is not None)


def run(
    built: LayerGraph,
    text: TextConfig,
    index: int,
    prompts: Prompts,
    checkpoint: Checkpoint,
    op_bodies: OpBodies,
    folder: Path,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Replace `prompts.hidden` by the layer's output.

    Args:
        built: The layer.
        text: The decoder's configuration.
        index: The layer's number.
        prompts: The conversations.
        checkpoint: The weights.
        op_bodies: The operators' bodies that ONNX Runtime executes here.
        folder: A folder for scratch files.
        chunk_tokens: Tokens of one call.

    Yields:
        A range of tokens, and the graph's outputs for them.
    """
    path = folder / "layer.onnx"
    data = folder / "layer.safetensors"
    with suppress(FileNotFoundError):
        data.unlink()
    layout = weights.plan(list(built.graph.weights.values()))
    weights.write(layout, checkpoint, data, lambda count: None)
    built.graph.save(path, op_bodies, data.name, layout.offsets)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    first = 0
    for length in prompts.lengths:
        past = {part: np.zeros((1, text.num_kv_heads, length, text.head_dim), np.float32) for part in ("key", "value")}
        for start in range(0, length, chunk_tokens):
            span = slice(first + start, first + min(start + chunk_tokens, length))
            feeds: dict[str, Any] = {
                "hidden": prompts.hidden[span],
                "token_types": prompts.token_types[span],
                "position_ids": prompts.position_ids[:, None, span],
                "past_lengths": np.array([start]),
                "lengths": np.array([span.stop - span.start]),
                **{f"past_{part}.{index}": array for part, array in past.items()},
            }
            outputs = dict(zip(names, session.run(names, feeds), strict=True))
            past = {part: outputs.pop(f"present_{part}") for part in past}
            prompts.hidden[span] = outputs.pop("after")
            yield span, outputs
        first += length
