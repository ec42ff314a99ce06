"""Turn decoded frames as players do: phones film in the sensor's direction and note how to show it."""

from collections.abc import Mapping
from typing import cast

import av
import numpy as np
from av.sidedata.sidedata import SideData, Type
from numpy.typing import NDArray


def upright(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """Return a frame turned and mirrored by its display matrix, uint8 (height, width, 3) in RGB.

    The matrix is nine int32 numbers [a b u, c d v, x y w] that move the pixel (x, y) to (a·x + c·y, b·x + d·y), here by
    quarter turns and mirrors; a matrix between them is taken for the nearest.
    """
    pixels = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    # PyAV iterates over values before version 19 and over keys from there; its stubs give the type of another mapping.
    data = cast(Mapping[Type, SideData], frame.side_data).get(Type.DISPLAYMATRIX)
    matrix = b"" if data is None else bytes(data)
    if len(matrix) < 36:
        return pixels
    a, b, _, c, d = (int(number) for number in np.frombuffer(matrix, np.int32)[:5])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        across, down = a, d
    else:
        pixels = pixels.transpose(1, 0, 2)
        across, down = c, b
    return np.ascontiguousarray(pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])
