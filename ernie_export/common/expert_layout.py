"""The layout in which ONNX Runtime's CUDA kernels for experts read 4-bit weights, and the way back to rows.

QMoE declares weights as rows: (..., N, K/2) bytes, the first of two neighbours in a byte's lower half. Its CUDA kernels
read tiles (CUTLASS's fpA_intB layout for compute capability 8.0, which they take on every GPU), and would lay the rows
out so in each session, beside the weights that they were given. Bundles for CUDA hold the tiles. By numbers of
fpA_intB_gemm_preprocessors_impl.{h,cu}, 1.31.1, of the values of one output:

1. in every 32 values, pairs in the order 0, 4, 8, 12, 1, 5, ..., 15: as bytes, a 4 by 4 matrix transposed;
2. 64 values of each of 4 outputs in turn;
3. in every 8 values, those at even places before those at odd ones.

The kernels take a value q as q - 8, as ours are.
"""

import numpy as np

TILE_OUTPUTS = 4  # N is a multiple of it
TILE_VALUES = 64  # K is a multiple of it
_WORD = np.dtype("<u4")  # 8 values, the first in the lowest bits


def to_tiles(rows: np.ndarray) -> np.ndarray:
    """Return rows (..., N, K/2) uint8 in the kernels' layout, in the same shape."""
    *lead, outputs, nbytes = rows.shape
    words = rows.reshape(-1, 4, 4).swapaxes(1, 2).copy().view(_WORD)  # four words of 32 values
    tiles = words.reshape(-1, TILE_OUTPUTS, nbytes * 2 // TILE_VALUES, TILE_VALUES // 8).swapaxes(1, 2)
    even, odd = tiles & 0x0F0F0F0F, tiles >> 4 & 0x0F0F0F0F
    packed = _gathered(even) | _gathered(odd) << 16
    return np.ascontiguousarray(packed, _WORD).view(np.uint8).reshape(*lead, outputs, nbytes)


def to_rows(tiles: np.ndarray) -> np.ndarray:
    """Return what `to_tiles` made tiles of."""
    *lead, outputs, nbytes = tiles.shape
    packed = tiles.reshape(-1).view(_WORD).reshape(-1, nbytes * 2 // TILE_VALUES, TILE_OUTPUTS, TILE_VALUES // 8)
    words = np.ascontiguousarray(
        (_scatter_bits(packed & 0xFFFF) | _scatter_bits(packed >> 16) << 4).swapaxes(1, 2), _WORD
    )
    return words.view(np.uint8).reshape(-1, 4, 4).swapaxes(1, 2).reshape(*lead, outputs, nbytes)


def _gathered(words: np.ndarray) -> np.ndarray:
    """Return the four values in the lower halves of a word's bytes as its lower 16 bits."""
    pairs: np.ndarray = (words | words >> 4) & 0x00FF00FF
    values: np.ndarray = (pairs | pairs >> 8) & 0x0000FFFF
    return values


def _scatter_bits(words: np.ndarray) -> np.ndarray:
    """Return the four values of a word's lower 16 bits in the lower halves of its bytes."""
    pairs: np.ndarray = (words | words << 8) & 0x00FF00FF
    values: np.ndarray = (pairs | pairs << 4) & 0x0F0F0F0F
    return values
