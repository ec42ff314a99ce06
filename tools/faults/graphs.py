"""Faults of the graphs."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ernie_export.common.manifest import Manifest
from tools.faults.fault import Fault, Planted

Node = Any  # onnx.NodeProto, whose fields its stubs do not know
FIRST = " is the first that differs: "


def edited(bundle: Path, graph: str, change: Callable[[Any], Any]) -> Any:
    """Change a graph in place; returns what `change` returns."""
    path = bundle / Manifest.read(bundle).graphs[graph]
    model = onnx.load(path, load_external_data=False)
    result = change(model)
    onnx.save(model, path)
    return result


def attribute(node: Node, name: str) -> Any:
    """Return an attribute of a node."""
    return next(attribute for attribute in node.attribute if attribute.name == name)


def pick(rng: np.random.Generator, nodes: list[Node]) -> Node:
    """Return one of the nodes."""
    return nodes[int(rng.integers(len(nodes)))]


def named_constant(path: str, name: str) -> str:
    """Return how a number in a graph is named that is not the configuration's."""
    return rf"\w+\.onnx: {re.escape(path)}: {name}: expected "


def of_layer(node: Node) -> str:
    """Return the number of the layer or block that a node belongs to."""
    return str(node.name.split("/")[2].rpartition(".")[2])


def norm_epsilon(graph: str) -> Callable[[Path, np.random.Generator], Planted]:
    """Return a fault: the epsilon of one norm is 0.5."""

    def plant(bundle: Path, rng: np.random.Generator) -> Planted:
        def change(model: Any) -> Planted:
            node = pick(rng, [node for node in model.graph.node if node.op_type.endswith("Normalization")])
            attribute(node, "epsilon").f = 0.5
            return Planted(node.name, named_constant(node.name, "epsilon"))

        return edited(bundle, graph, change)

    return plant


def exchanged_axes(bundle: Path, rng: np.random.Generator) -> Planted:
    """Exchange height and width in the rotation of prefill."""

    def change(model: Any) -> None:
        for node in model.graph.node:
            for found in node.attribute:
                if found.name == "axes" and len(found.ints) > 1:
                    found.ints[:] = [{1: 2, 2: 1}.get(axis, axis) for axis in found.ints]

    edited(bundle, "decoder", change)
    return Planted("every layer", named_constant("/model/RotaryTables", "axes"))


def paired_otherwise(bundle: Path, rng: np.random.Generator) -> Planted:
    """Pair neighbours, not halves (or the reverse), in one vision block's rotation of queries and keys."""

    def change(model: Any) -> Planted:
        block = pick(rng, [node for node in model.graph.node if node.op_type == "RotaryEmbedding"]).name.split("/")[2]
        for node in model.graph.node:
            if node.op_type == "RotaryEmbedding" and f"/{block}/" in node.name:
                found = attribute(node, "interleaved")
                found.i = 1 - found.i
        return Planted(block, named_constant(f"/vision_model/{block}/attn/q/RotaryEmbedding", "interleaved"))

    return edited(bundle, "vision", change)


def rotated_otherwise(bundle: Path, rng: np.random.Generator) -> Planted | None:
    """Pair halves in place of neighbours (or the reverse) in the decoder's rotation."""

    def change(model: Any) -> Planted | None:
        nodes = [node for function in model.functions for node in function.node if node.op_type == "RotaryEmbedding"]
        for node in nodes:
            found = attribute(node, "interleaved")
            found.i = 1 - found.i
        sentence = f"layer 0 attention{FIRST}text too, but not the first token: scale, mask or rotation"
        return Planted("every layer", sentence) if nodes else None

    return edited(bundle, "decoder", change)


def attention_scale(bundle: Path, rng: np.random.Generator) -> Planted:
    """Scale the scores by 1 / head size in place of its root."""

    def change(model: Any) -> None:
        (node,) = [node for node in model.graph.node if node.op_type == "RotaryTables"]
        attribute(node, "scale").f **= 2

    edited(bundle, "decoder", change)
    return Planted("every layer", named_constant("/model/RotaryTables", "scale"))


def exchanged_axis_tables(bundle: Path, rng: np.random.Generator) -> Planted:
    """Give one layer the positions of height for width, and the reverse."""

    def change(model: Any) -> None:
        order = onnx.numpy_helper.from_array(np.array([0, 2, 1], np.int64), "/axes")
        model.graph.initializer.append(order)
        (tables,) = [node for node in model.graph.node if node.op_type == "RotaryTables"]
        tables.input[0] = "/exchanged"
        gather = onnx.helper.make_node("Gather", ["position_ids", "/axes"], ["/exchanged"], "/Exchange", axis=0)
        model.graph.node.insert(0, gather)

    edited(bundle, "decoder", change)
    return Planted("every layer", f"layer 0 attention{FIRST}images and what follows, text alone agrees: axes")


def other_norm(bundle: Path, rng: np.random.Generator) -> Planted:
    """Exchange the weights of the two norms of one layer."""

    def change(model: Any) -> Planted:
        norms = [
            (node, index)
            for node in model.graph.node
            for index, name in enumerate(node.input)
            if "input_layernorm" in name
        ]
        node, index = norms[int(rng.integers(len(norms)))]
        norm = str(node.input[index])
        number = norm.split(".")[2]
        node.input[index] = norm.replace("input_layernorm", "post_attention_layernorm")
        return Planted(node.name, f"layer {number} attention{FIRST}the norm before attention")

    return edited(bundle, "decoder", change)


def vision_scale(bundle: Path, rng: np.random.Generator) -> Planted | None:
    """Rotate one vision block's queries by the tables of keys, which have no scale."""

    def change(model: Any) -> Planted | None:
        queries = [
            n for n in model.graph.node if n.op_type == "RotaryEmbedding" and n.name.endswith("/q/RotaryEmbedding")
        ]
        if not queries:
            return None
        node = pick(rng, queries)
        node.input[1:] = [name.replace("/q_", "/k_") for name in node.input[1:]]
        return Planted(node.name, f"vision block {of_layer(node)}{FIRST}")

    return edited(bundle, "vision", change)


def layer_mask(bundle: Path, rng: np.random.Generator) -> Planted:
    """Let one layer attend as though one position more were there, before the first."""

    def change(model: Any) -> Planted:
        node = pick(rng, [node for node in model.graph.node if node.op_type == "CachedAttention"])
        shift(model, node, "past_lengths", 1)
        return Planted(node.name, f"layer {of_layer(node)} attention{FIRST}.*(mask|that no token has written)")

    return edited(bundle, "decoder", change)


def shift(model: Any, node: Node, name: str, by: int) -> None:
    """Let a node read an integer input plus `by`."""
    constant = f"{node.name}/by"
    sum_ = f"{node.name}/shifted"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(by, np.int64), constant))
    node.input[list(node.input).index(name)] = sum_
    place = list(model.graph.node).index(node)
    model.graph.node.insert(place, onnx.helper.make_node("Add", [name, constant], [sum_], name=f"{node.name}/Shift"))


def cache_place(bundle: Path, rng: np.random.Generator) -> Planted | None:
    """Let one layer of decode steps write, and read, one place further on in its cache."""
    if Manifest.read(bundle).cpu_decode_graph != "decode":
        return None

    def change(model: Any) -> Planted:
        node = pick(rng, [node for node in model.graph.node if node.op_type == "CachedAttention"])
        shift(model, node, "past_lengths", 1)
        stage = f"decode layer {of_layer(node)} attention"
        return Planted(node.name, f"{stage}{FIRST}prefill agrees: the decode graph: .*KV cache")

    return edited(bundle, "decode", change)


def exchanged_inputs(first: str, second: str) -> Callable[[Path, np.random.Generator], Planted]:
    """Return a fault: two inputs of one layer's dispatch are exchanged."""

    def plant(bundle: Path, rng: np.random.Generator) -> Planted:
        def change(model: Any) -> Planted:
            node = pick(rng, [node for node in model.graph.node if "MoEDispatch" in node.op_type])
            a = next(index for index, name in enumerate(node.input) if name.endswith(first))
            b = next(index for index, name in enumerate(node.input) if name.endswith(second))
            node.input[a], node.input[b] = node.input[b], node.input[a]
            sentence = f"layer {of_layer(node)}{FIRST}routing differs for .*(expert groups|experts) or their router"
            return Planted(node.name, sentence)

        return edited(bundle, "decoder", change)

    return plant


def exchanged_types(bundle: Path, rng: np.random.Generator) -> Planted:
    """Send text tokens to the vision experts of one layer, and vision tokens to the text experts."""

    def change(model: Any) -> Planted:
        node = pick(rng, [node for node in model.graph.node if "MoEDispatch" in node.op_type])
        zero = f"{node.name}/zero"
        text = f"{node.name}/text"
        other = f"{node.name}/other"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.int64), zero))
        types = node.input[1]  # 1 and 2 for images and videos
        place = list(model.graph.node).index(node)
        model.graph.node.insert(place, onnx.helper.make_node("Cast", [text], [other], f"{node.name}/Other", to=7))
        model.graph.node.insert(place, onnx.helper.make_node("Equal", [types, zero], [text], f"{node.name}/Text"))
        model.graph.node[place + 2].input[1] = other
        return Planted(
            node.name, f"layer {of_layer(node)}{FIRST}routing differs for text and vision tokens: .*both expert groups"
        )

    return edited(bundle, "decoder", change)


def frame_pairs(bundle: Path, rng: np.random.Generator) -> Planted:
    """Pair each frame with itself."""

    def change(model: Any) -> None:
        for node in model.graph.node:
            node.input[:] = ["first" if name == "second" else name for name in node.input]

    edited(bundle, "resampler", change)
    return Planted("", f"resampler{FIRST}videos alone: the pairing of frames")


def patch_order(bundle: Path, rng: np.random.Generator) -> Planted:
    """Exchange the rows and columns of patches."""

    def change(model: Any) -> None:
        order = onnx.numpy_helper.from_array(np.array([1, 0], np.int64), "/exchanged")
        model.graph.initializer.append(order)
        for node in model.graph.node:
            node.input[:] = ["/coordinates" if name == "coordinates" else name for name in node.input]
        gather = onnx.helper.make_node("Gather", ["coordinates", "/exchanged"], ["/coordinates"], "/Exchange", axis=-1)
        model.graph.node.insert(0, gather)

    edited(bundle, "vision", change)
    return Planted("", f"vision block 0{FIRST}order or embedding of patches")


def missing_residual(bundle: Path, rng: np.random.Generator) -> Planted:
    """Add the values after attention, in place of the layer's input, to those of attention of a layer."""

    def change(model: Any) -> Planted:
        nodes = [node for node in model.graph.node if node.name.endswith("/after_attention")]
        node = pick(rng, nodes)
        node.input[0] = node.input[1]
        return Planted(node.name, f"layer {of_layer(node)} attention{FIRST}")

    return edited(bundle, "decoder", change)


GRAPHS = (
    Fault("a norm's epsilon, vision encoder", "graphs", norm_epsilon("vision")),
    Fault("a norm's epsilon, resampler", "graphs", norm_epsilon("resampler")),
    Fault("a norm's epsilon, decoder", "graphs", norm_epsilon("decoder")),
    Fault("a norm's epsilon, decode steps", "graphs", norm_epsilon("decode")),
    Fault("axes of the rotation", "graphs", exchanged_axes),
    Fault("positions of height and width", "graphs", exchanged_axis_tables),
    Fault("weights of another norm", "graphs", other_norm),
    Fault("pairing of the rotation, vision encoder", "graphs", paired_otherwise),
    Fault("pairing of the rotation, decoder", "graphs", rotated_otherwise),
    Fault("scale of attention, vision encoder", "graphs", vision_scale),
    Fault("scale of attention, decoder", "graphs", attention_scale),
    Fault("mask off by one", "graphs", layer_mask),
    Fault("cache written one place off in decode steps", "graphs", cache_place),
    Fault("exchanged routers", "graphs", exchanged_inputs("mlp.gate.weight", "mlp.gate.weight_1")),
    Fault("exchanged router biases", "graphs", exchanged_inputs("bias.text", "bias.vision")),
    Fault("tokens sent to the other expert group", "graphs", exchanged_types),
    Fault("the resampler's pairs of frames", "graphs", frame_pairs),
    Fault("patch order", "graphs", patch_order),
    Fault("a missing residual", "graphs", missing_residual),
)
