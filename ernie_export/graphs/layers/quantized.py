"""Weights quantized to 4 or 8 bits or to e4m3 numbers, and the linear layer that reads them."""

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ernie_export.common.errors import InvalidValue
from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.weight_spec import Piece, Quantization, Role, Rows, ScalesOf, Weight

GROUPS = 128, 64, 32, 16  # values that share a scale: the larger the fewer bytes, and the faster the kernels


def quantized(
    g: GraphBuilder, x: ir.Value, name: str, sources: Sequence[str], outputs: int, inputs: int, bits: int, role: Role
) -> ir.Value:
    """Multiply x (T, inputs) by a quantized weight (outputs, inputs).

    Args:
        g: The graph.
        x: (T, inputs).
        name: The weight's name in the bundle.
        sources: The checkpoint's tensors whose rows it holds, in order.
        outputs: Rows of the weight.
        inputs: Columns of the weight.
        bits: 4 or 8.
        role: What the weight is.
    """
    group = group_size(sources[0], inputs)
    shape = (outputs, inputs // group, group * bits // 8)  # as MatMulNBits wants it: by row, group and byte
    pieces = tuple(Rows(source) for source in sources)
    how = Quantization(bits, group, g.float8 and bits == 8)
    qweight, scales = quantized_weight(g, name, shape, (outputs, inputs), pieces=pieces, how=how, role=role)
    prefix, attributes = storage(how)
    (y,) = g.custom(f"{prefix}Linear", x, qweight, scales, K=inputs, N=outputs, **attributes)
    return y


def storage(how: Quantization) -> tuple[str, dict[str, int]]:
    """Return the prefix of the operators that read such weights, and their attributes; see STORAGES."""
    return ("Float8", {"group": how.group}) if how.float8 else ("Quantized", {"bits": how.bits, "group": how.group})


def quantized_weight(
    g: GraphBuilder,
    name: str,
    stored: tuple[int, ...],
    shape: tuple[int, ...],
    *,
    pieces: tuple[Piece, ...],
    how: Quantization,
    role: Role,
) -> tuple[ir.Value, ir.Value]:
    """Add a quantized weight to the graph.

    Args:
        g: The graph.
        name: The weight's name; the scales' is `name`_scales.
        stored: The shape of the quantized weight as stored.
        shape: The shape of the weight itself.
        pieces: The pieces that it is made of.
        how: The type and the group size.
        role: What the weight is.

    Returns:
        The quantized weight (uint8 or e4m3) and its scales (..., groups).
    """
    kind = np.dtype(ml_dtypes.float8_e4m3fn if how.float8 else np.uint8)
    qweight = g.weight(Weight(name, kind, stored, pieces, how, role))
    groups = (*shape[:-1], shape[-1] // how.group)
    return qweight, g.weight(Weight(f"{name}_scales", g.dtype.numpy(), groups, (ScalesOf(name),), role=role))


def group_size(source: str, *widths: int) -> int:
    """Return the largest group size that divides all of `widths`; raise InvalidValue naming `source` if none does."""
    for group in GROUPS:
        if all(width % group == 0 for width in widths):
            return group
    found = " and ".join(map(str, widths))
    raise InvalidValue(source, f"a width that {GROUPS[-1]} divides, to be quantised", found)
