"""Declaration of AddRMSNormalization: the sum that a residual stream goes on with, and its norm for the next layer.

| input | shape | dtype |
| --- | --- | --- |
| residual | (T, H) | the graph's |
| x | (T, H) | the graph's |
| weight | (H,) | the graph's |
| output total | (T, H) | residual + x, in the graph's dtype |
| output y | (T, H) | total / sqrt(mean(total²) + epsilon), computed in float32 and cast, times weight |

Attribute: `epsilon`. One operator because it is one kernel where a runtime has it, in place of two.
"""

from ernie_export.graphs.ops.spec import OpSpec

ADD_RMS_NORM = OpSpec("AddRMSNormalization", ("residual", "x", "weight"), ("total", "y"), ("epsilon",))
