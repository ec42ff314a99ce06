"""Declaration of QuantizedLinear and Float8Linear, and of how any operator's weights may be stored.

T tokens, K inputs, N outputs, g values a group; a weight is scale · (q - 2^(bits - 1)) where quantized values are
integers, and scale · code where they are e4m3 numbers.

| input | shape | dtype |
| --- | --- | --- |
| x | (T, K) | the graph's |
| qweight of QuantizedLinear | (N, K/g, g·bits/8) | uint8; with 4 bits the first of two neighbours is the lower half |
| qweight of Float8Linear | (N, K/g, g) | float8e4m3fn |
| scales | (N, K/g) | the graph's |
| output y | (T, N) | the graph's |

Attributes: `K`, `N`, `bits` 4 or 8 (of QuantizedLinear), `group` g.
"""

from ernie_export.graphs.ops.spec import OpSpec

# Prefix of the operators that take weights stored so, and the attributes that describe it.
STORAGES: dict[str, tuple[str, ...]] = {"": (), "Quantized": ("bits", "group"), "Float8": ("group",)}

QUANTIZED_LINEAR, FLOAT8_LINEAR = (
    OpSpec(f"{storage}Linear", ("x", "qweight", "scales"), ("y",), ("K", "N", *STORAGES[storage]))
    for storage in ("Quantized", "Float8")
)
