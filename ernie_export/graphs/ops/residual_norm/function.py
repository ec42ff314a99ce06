"""ONNX function bodies of AddRMSNormalization.

`onnxruntime`: com.microsoft's SkipSimplifiedLayerNormalization, one kernel on a CPU and on CUDA. It multiplies by the
weight before it casts, as ONNX Runtime's RMSNormalization does. `standard`: two operators, for every other library.
"""

STANDARD = """
AddRMSNormalization <epsilon> (residual, x, weight) => (total, y) {
    total = Add (residual, x)
    y = RMSNormalization <axis = -1, epsilon: float = @epsilon, stash_type = 1> (total, weight)
}
"""

ONNXRUNTIME = """
AddRMSNormalization <epsilon> (residual, x, weight) => (total, y) {
    y, mean, inverse, total = com.microsoft.SkipSimplifiedLayerNormalization <epsilon: float = @epsilon>
        (residual, x, weight)
}
"""


def standard(dtype: str) -> list[str]:
    """Return the body in standard operators; the same for every dtype."""
    return [STANDARD]


def onnxruntime(dtype: str) -> list[str]:
    """Return the body with ONNX Runtime's fused operator; the same for every dtype."""
    return [ONNXRUNTIME]
