"""Declaration of VisionAttention: q, k, v and y are (frames, patches, N·D); no frame sees another.

Attribute: `num_heads`. The scale is 1/sqrt(D).
"""

from ernie_export.graphs.ops.spec import OpSpec

VISION_ATTENTION = OpSpec("VisionAttention", ("q", "k", "v"), ("y",), ("num_heads",))
