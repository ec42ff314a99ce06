"""Declaration of QuantizedLinear.

T tokens, K inputs, N outputs, g values a group; a weight is scale · (code - 2^(bits - 1)).

| input | shape | dtype |
| --- | --- | --- |
| x | (T, K) | the graph's |
| codes | (N, K/g, g·bits/8) | uint8; with 4 bits the first of two neighbours is the lower half |
| scales | (N, K/g) | the graph's |
| output y | (T, N) | the graph's |

Attributes: `K`, `N`, `bits` 4 or 8, `group` g.
"""

from ernie_export.graphs.ops.spec import OpSpec

QUANTIZED_LINEAR = OpSpec("QuantizedLinear", ("x", "codes", "scales"), ("y",), ("K", "N", "bits", "group"))
