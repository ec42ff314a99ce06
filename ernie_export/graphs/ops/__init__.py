"""Custom operators, one room each: spec, NumPy reference, ONNX function bodies."""
