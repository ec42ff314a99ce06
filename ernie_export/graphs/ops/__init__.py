"""Custom operators, one package each: spec, NumPy reference, ONNX function bodies."""
