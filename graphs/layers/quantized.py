"""Weights in codes of 4 or 8 bits, and the linear layer that reads them."""

import numpy as np
import onnx_ir as ir
from ernie_export.graphs.build import GraphBuilder
from ernie_export.graphs.errors import UserError
from ernie_export.graphs.weights import Piece, Quantization, Rows, ScalesOf, Weight

GROUPS = 128, 64, 32, 16  # values that share a scale: the larger the fewer bytes, and the faster the kernels


def quantized(g: GraphBuilder, x: ir.Value, name: str, source: str, outputs: int, inputs: int, bits: int) -> ir.Value:
    """x (T, inputs) by a copy called `name` of the checkpoint's `source` (outputs, inputs), in codes of `bits`."""
    group = group_size(source, inputs)
    shape = (outputs, inputs // group, group * bits // 8)  # as MatMulNBits wants it: by row, group and byte
    codes, scales = codes_and_scales(g, name, shape, (outputs, inputs), (Rows(source),), Quantization(bits, group))
    (y,) = g.custom("QuantizedLinear", x, codes, scales, K=inputs, N=outputs, bits=bits, group=group)
    return y


def codes_and_scales(
    g: GraphBuilder,
    name: str,
    stored: tuple[int, ...],
    shape: tuple[int, ...],
    pieces: tuple[Piece, ...],
    how: Quantization,
) -> tuple[ir.Value, ir.Value]:
    """Codes (uint8, shape `stored`) and scales (..., groups) of the weight `name` of shape `shape` made of `pieces`."""
    codes = g.weight(Weight(name, np.dtype(np.uint8), stored, pieces, how))
    groups = (*shape[:-1], shape[-1] // how.group)
    return codes, g.weight(Weight(f"{name}_scales", g.dtype.numpy(), groups, (ScalesOf(name),)))


def group_size(source: str, *widths: int) -> int:
    """The largest group that divides all of `widths`; UserError names `source` if none does."""
    for group in GROUPS:
        if all(width % group == 0 for width in widths):
            return group
    found = " and ".join(map(str, widths))
    raise UserError(f"{source}: expected a width that {GROUPS[-1]} divides, to be quantised, found {found}")
