"""The engine for TensorRT and TensorRT for RTX."""
