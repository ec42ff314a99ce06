"""Weights in codes of 4 or 8 bits or in e4m3 numbers, and the linear layer that reads them."""

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ernie_export.common.errors import UserError
from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.weight_spec import Piece, Quantization, Rows, ScalesOf, Weight

GROUPS = 128, 64, 32, 16  # values that share a scale: the larger the fewer bytes, and the faster the kernels


def quantized(
    g: GraphBuilder, x: ir.Value, name: str, sources: Sequence[str], outputs: int, inputs: int, bits: int
) -> ir.Value:
    """x (T, inputs) by `name` (outputs, inputs), the rows of the checkpoint's `sources` in codes of `bits`."""
    group = group_size(sources[0], inputs)
    shape = (outputs, inputs // group, group * bits // 8)  # as MatMulNBits wants it: by row, group and byte
    pieces = tuple(Rows(source) for source in sources)
    how = Quantization(bits, group, g.float8 and bits == 8)
    codes, scales = codes_and_scales(g, name, shape, (outputs, inputs), pieces, how)
    prefix, attributes = storage(how)
    (y,) = g.custom(f"{prefix}Linear", x, codes, scales, K=inputs, N=outputs, **attributes)
    return y


def storage(how: Quantization) -> tuple[str, dict[str, int]]:
    """Prefix of the operators that take weights stored so, and what they are told of it: see STORAGES."""
    return ("Float8", {"group": how.group}) if how.float8 else ("Quantized", {"bits": how.bits, "group": how.group})


def codes_and_scales(
    g: GraphBuilder,
    name: str,
    stored: tuple[int, ...],
    shape: tuple[int, ...],
    pieces: tuple[Piece, ...],
    how: Quantization,
) -> tuple[ir.Value, ir.Value]:
    """Codes (uint8 or e4m3, of shape `stored`) and scales (..., groups) of the weight `name` that `pieces` make."""
    kind = np.dtype(ml_dtypes.float8_e4m3fn if how.float8 else np.uint8)
    codes = g.weight(Weight(name, kind, stored, pieces, how))
    groups = (*shape[:-1], shape[-1] // how.group)
    return codes, g.weight(Weight(f"{name}_scales", g.dtype.numpy(), groups, (ScalesOf(name),)))


def group_size(source: str, *widths: int) -> int:
    """The largest group that divides all of `widths`; UserError names `source` if none does."""
    for group in GROUPS:
        if all(width % group == 0 for width in widths):
            return group
    found = " and ".join(map(str, widths))
    raise UserError(f"{source}: expected a width that {GROUPS[-1]} divides, to be quantised, found {found}")
