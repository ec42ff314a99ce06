"""Bound the JSON of an untrusted request before it is parsed, for every server.

Small values take much more memory and time than they are long, and the interpreter's lock is held while they are
parsed.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ernie_export.common.errors import InvalidValue

Bytes = npt.NDArray[np.uint8]

MAX_BODY = 32 * 2**20
MAX_TEXT = 4 * 2**20
# Commas and brackets of a body, in its text too: parsing holds the interpreter's lock for as long as there are values.
MAX_MARKS = 2**18
MAX_DATA_URIS = 1024  # that are looked for in a body; what follows counts as text


def check_size(name: str, body: bytes | bytearray, max_body: int = MAX_BODY, max_text: int = MAX_TEXT) -> None:
    """Refuse a body that is too large to be parsed.

    Args:
        name: The body, for errors.
        body: JSON.
        max_body: Most bytes.
        max_text: Most bytes that are no image or video.

    Raises:
        InvalidValue: The body is larger, or has more commas and brackets than any conversation.
    """
    if len(body) > max_body:
        raise InvalidValue(name, f"at most {max_body} bytes", len(body))
    data = np.frombuffer(body, np.uint8)
    if sum(_count(data, mark) for mark in b",{[") > MAX_MARKS:
        raise InvalidValue(name, f"at most {MAX_MARKS} commas and brackets", "more")
    if len(body) > max_text and len(body) - _count_data(body) > max_text:
        raise InvalidValue(name, f"at most {max_text} bytes besides media", "more")


def _pieces(data: Bytes) -> Iterator[Bytes]:
    """Yield `data` in pieces of 1 MiB: what is computed of one stays in the cache."""
    return (data[start : start + 2**20] for start in range(0, len(data), 2**20))


def _count(data: Bytes, value: int) -> int:
    """Count a byte, by NumPy since bytes.count holds the interpreter's lock: 20 ms for 30 MB, while no thread runs."""
    return sum(int(np.count_nonzero(piece == value)) for piece in _pieces(data))


def _count_data(body: bytes | bytearray) -> int:
    """Return the bytes of data URIs in base64, in a time that depends on the body's length alone.

    They are strings of ASCII with few escapes, of a slash, which some libraries write: the parser copies them. Other
    strings it reads character by character, several times slower, while no other thread runs.
    """
    mark = b";base64,"
    total = 0
    end = 0
    for _ in range(MAX_DATA_URIS):
        start = body.find(mark, end)
        end = body.find(b'"', start)
        if -1 in (start, end):
            break
        data = np.frombuffer(body, np.uint8)[start + len(mark) : end]
        if _is_copied(data):
            total += len(data)
    return total


def _is_copied(data: Bytes) -> bool:
    """Return whether the parser copies a string: it is ASCII, and at most each 16th byte begins an escaped slash."""
    if not all(piece.max() < 128 for piece in _pieces(data)) or _count(data, ord("\\")) > len(data) // 16:
        return False
    after = np.flatnonzero(data == ord("\\")) + 1
    return not (after == len(data)).any() and bool((data[after] == ord("/")).all())
