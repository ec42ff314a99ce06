"""Bound the JSON of an untrusted request before it is parsed, for every server.

Small values take much more memory and time than they are long, and the interpreter's lock is held while they are
parsed.
"""

from ernie_export.common.errors import InvalidValue

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
    if sum(body.count(mark) for mark in (b",", b"{", b"[")) > MAX_MARKS:
        raise InvalidValue(name, f"at most {MAX_MARKS} commas and brackets", "more")
    if len(body) > max_text and len(body) - _count_data(body) > max_text:
        raise InvalidValue(name, f"at most {max_text} bytes besides media", "more")


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
        data = body[start + len(mark) : end]
        escapes = data.count(b"\\/")
        if data.isascii() and data.count(b"\\") == escapes <= len(data) // 16:
            total += len(data)
    return total
