"""bfloat16 in NumPy, which has no such dtype: its bits are the upper half of a float32's."""

import numpy as np


def to_bits(values: np.ndarray) -> np.ndarray:
    """Return the bits (uint16) of `values` as bfloat16, rounded towards zero; exact for what `from_bits` returned."""
    floats = np.ascontiguousarray(values, np.float32)
    return np.ascontiguousarray(floats.view(np.uint16)[..., 1::2])  # little-endian: the upper half comes second


def from_bits(bits: np.ndarray) -> np.ndarray:
    """Return the float32 values of bfloat16 `bits` (uint16); every one is exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
