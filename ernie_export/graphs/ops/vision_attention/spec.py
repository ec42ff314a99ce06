"""Declaration of VisionAttention: q, k, v and y are (frames, patches, N·D); no frame sees another.

q is scaled by 1/sqrt(D) already, in float32 where it is rotated. Attribute: `num_heads`.
"""

from ernie_export.graphs.ops.spec import OpSpec

VISION_ATTENTION = OpSpec("VisionAttention", ("q", "k", "v"), ("y",), ("num_heads",))
