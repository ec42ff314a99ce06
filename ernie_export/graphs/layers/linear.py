"""Linear layers and the norms around them. x is (rows, width) throughout; names are the checkpoint's."""

from collections.abc import Sequence

import onnx_ir as ir

from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.layers.quantized import quantized
from ernie_export.graphs.weight_spec import Role


def linear(
    g: GraphBuilder, x: ir.Value, tensor: str, outputs: int, inputs: int, bias: bool, parts: Sequence[str] = ()
) -> ir.Value:
    """Multiply x (T, inputs) by the checkpoint's `tensor`.weight (outputs, inputs) and add its bias, if it has one.

    The weight is quantized if the graph's `bits` say so. With `parts` it consists of these layers' rows, in order.
    """
    if g.bits is None:
        return dense(g, x, tensor, outputs, inputs, bias, parts)
    weights, biases = ([f"{part}.{kind}" for part in parts or (tensor,)] for kind in ("weight", "bias"))
    with g.scope(tensor.rsplit(".", 1)[-1]):
        y = quantized(g, x, f"{tensor}.weight", weights, outputs, inputs, g.bits, Role.PROJECTION)
        return g.op("Add", y, g.tensor(f"{tensor}.bias", (outputs,), Role.BIAS, sources=biases)) if bias else y


def dense(
    g: GraphBuilder, x: ir.Value, tensor: str, outputs: int, inputs: int, bias: bool, parts: Sequence[str] = ()
) -> ir.Value:
    """Multiply by a weight in the graph's dtype; see `linear`.

    Gemm with transB reads the weight as the checkpoint stores it, so nothing is transposed at export.
    """
    weights, biases = ([f"{part}.{kind}" for part in parts or (tensor,)] for kind in ("weight", "bias"))
    operands = [x, g.tensor(f"{tensor}.weight", (outputs, inputs), Role.PROJECTION, sources=weights)]
    if bias:
        operands.append(g.tensor(f"{tensor}.bias", (outputs,), Role.BIAS, sources=biases))
    with g.scope(tensor.rsplit(".", 1)[-1]):
        return g.op("Gemm", *operands, transB=1)


def rms_norm(g: GraphBuilder, x: ir.Value, tensor: str, width: int, eps: float) -> ir.Value:
    """Compute x / sqrt(mean(x²) + eps) in float32, cast back, times the weight: the order that the reference keeps."""
    with g.scope(tensor.rsplit(".", 1)[-1]):
        weight = g.tensor(f"{tensor}.weight", (width,), Role.NORM)
        return g.op("RMSNormalization", x, weight, axis=-1, epsilon=eps, stash_type=1)


def add_rms_norm(
    g: GraphBuilder, residual: ir.Value, x: ir.Value, tensor: str, width: int, eps: float, name: str
) -> tuple[ir.Value, ir.Value]:
    """Compute residual + x, as the node `name`, and its `rms_norm`; returns both."""
    weight = g.tensor(f"{tensor}.weight", (width,), Role.NORM)
    total, y = g.call("AddRMSNormalization", [residual, x, weight], {"epsilon": eps}, name)
    return total, y


def layer_norm(g: GraphBuilder, x: ir.Value, tensor: str, width: int, eps: float) -> ir.Value:
    """Normalize the last axis to mean 0 and variance 1, then scale and shift it."""
    weight = g.tensor(f"{tensor}.weight", (width,), Role.NORM)
    bias = g.tensor(f"{tensor}.bias", (width,), Role.NORM)
    with g.scope(tensor.rsplit(".", 1)[-1]):
        return g.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=eps)
