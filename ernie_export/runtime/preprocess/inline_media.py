"""Images and videos that stand in a text: data URIs (RFC 2397) and base64, as clients and people write them."""

import base64
import re
import string
from urllib.parse import unquote_to_bytes

BASE64_PIECE = 2**20  # characters, a multiple of 4
# How files of images and videos begin: base64 without a header is known by it, since a path may look like base64.
SIGNATURES = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\x1aE\xdf\xa3",
    b"FLV", b"OggS", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
)  # fmt: skip
SHORTEST = 32  # characters of base64 without a header
_BASE64 = re.compile(r"[A-Za-z0-9+/_=\s-]+")


def inline_bytes(text: str, always: bool = False) -> bytes | None:
    """Return the bytes of a data URI or of base64; None for any other text, such as a path.

    Base64 may be broken into lines, without its padding, or of the alphabet for URLs. A data URI may be of any type or
    none, in base64 or percent-encoded.

    Args:
        text: What stands in place of a file.
        always: Whether the text must be base64 or a data URI.

    Raises:
        ValueError: The text is meant to be one of them, and is not. The message is short.
    """
    if text[:5].lower() == "data:":
        head, comma, data = text.partition(",")
        if not comma:
            raise ValueError("a data URI without a comma")
        if head.lower().rstrip().endswith(";base64"):
            return checked(lenient_base64(unquote_to_bytes(data).decode("latin-1") if "%" in data else data))
        return checked(unquote_to_bytes(data))
    if always:
        return checked(lenient_base64(text))
    start = "".join(text[:256].split())[:SHORTEST]
    if len(start) < SHORTEST or not _BASE64.fullmatch(start) or not is_media(lenient_base64(start)):
        return None
    return lenient_base64(text)


def is_media(start: bytes) -> bool:
    """Return whether a file that begins with `start` is an image or a video."""
    return start.startswith(SIGNATURES) or start[4:8] in (b"ftyp", b"moov", b"wide")


def checked(content: bytes) -> bytes:
    """Return `content`. Raises ValueError where there is none."""
    if not content:
        raise ValueError("no data")
    return content


def lenient_base64(text: str) -> bytes:
    """Return the bytes of base64 in either alphabet, with or without line breaks and padding. Raises ValueError.

    A text of megabytes is split only where it has spaces, since no other thread runs meanwhile.
    """
    spaced = not text.isascii() or any(space in text for space in string.whitespace)
    compact = "".join(text.split()) if spaced else text
    compact = compact.replace("-", "+").replace("_", "/")
    return decode_base64(compact if compact.endswith("=") else compact + "=" * (-len(compact) % 4))


def decode_base64(text: str) -> bytes:
    """Return the bytes of base64 text. It is decoded in pieces, between which other threads run.

    Raises ValueError for text that is not base64, or goes on after its padding.
    """
    pieces = []
    for start in range(0, len(text), BASE64_PIECE):
        piece = text[start : start + BASE64_PIECE]
        if len(text) > start + BASE64_PIECE and piece.endswith("="):
            raise ValueError("data after the padding")
        pieces.append(base64.b64decode(piece, validate=True))
    return b"".join(pieces)
