"""The file formats that damage is aimed at, taken apart into tagged parts and put together again.

Only what separates one part from the next is read here, and sizes and checksums are written anew, so that damaged
parts reach the code behind a reader's first checks.
"""

import json
import struct
import zlib
from collections.abc import Callable
from random import Random

from mutate import Part, as_json, damage_bytes, damage_document, damage_file

Damage = Callable[[Random, bytes, list[bytes]], bytes]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def parse_png(data: bytes) -> list[Part]:
    """Chunks; APNG's as well."""
    parts = []
    place = len(PNG_SIGNATURE)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        parts.append(Part(data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return parts


def build_png(parts: list[Part]) -> bytes:
    """A file of chunks with their lengths and checksums."""
    chunks = [
        struct.pack(">I", len(p.body)) + p.tag + p.body + struct.pack(">I", zlib.crc32(p.tag + p.body))
        for p in parts
        if isinstance(p.body, bytes)
    ]
    return PNG_SIGNATURE + b"".join(chunks)


def parse_riff(data: bytes) -> list[Part]:
    """The file's form (WEBP, AVI) as the first part, then chunks, those of a LIST within it."""

    def chunks(data: bytes) -> list[Part]:
        parts = []
        place = 0
        while place + 8 <= len(data):
            tag = data[place : place + 4]
            (length,) = struct.unpack_from("<I", data, place + 4)
            body = data[place + 8 : place + 8 + length]
            nested = tag == b"LIST" and body[:4] != b"movi"
            parts.append(Part(tag, [Part(b"", body[:4]), *chunks(body[4:])] if nested else body))
            place += 8 + length + length % 2
        return parts

    return [Part(b"", data[8:12]), *chunks(data[12:])]


def build_riff(parts: list[Part]) -> bytes:
    """A RIFF file."""

    def join(parts: list[Part]) -> bytes:
        return b"".join(chunk(part) for part in parts)

    def chunk(part: Part) -> bytes:
        body = part.body if isinstance(part.body, bytes) else join(part.body)
        return body if not part.tag else part.tag + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)

    body = join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


BOXES = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta", b"moof", b"traf", b"mvex"}


def parse_mp4(data: bytes) -> list[Part]:
    """Boxes, those of BOXES with their own inside."""
    parts = []
    place = 0
    while place + 8 <= len(data):
        length, tag = struct.unpack_from(">I4s", data, place)
        end = place + length if length >= 8 else len(data)
        body = data[place + 8 : end]
        parts.append(Part(tag, parse_mp4(body) if tag in BOXES else body))
        place = end
    return parts


def build_mp4(parts: list[Part]) -> bytes:
    """A file of boxes with their sizes."""
    bodies = [part.body if isinstance(part.body, bytes) else build_mp4(part.body) for part in parts]
    return b"".join(struct.pack(">I", 8 + len(body)) + p.tag + body for p, body in zip(parts, bodies, strict=True))


# Segment, SeekHead, Info, Tracks, TrackEntry, Video, Cluster, BlockGroup, Cues, CuePoint, CueTrackPositions, EBML
MASTERS = {
    bytes.fromhex(name)
    for name in "18538067 114d9b74 1549a966 1654ae6b ae e0 1f43b675 a0 1c53bb6b bb b7 1a45dfa3".split()
}


def parse_ebml(data: bytes) -> list[Part]:
    """Elements of Matroska and WebM; a size of all ones goes to the end."""
    parts = []
    place = 0
    while place < len(data) and data[place]:
        width = 9 - data[place].bit_length()
        tag = data[place : place + width]
        at = place + width
        if at >= len(data) or not data[at]:
            break
        width = 9 - data[at].bit_length()
        length = int.from_bytes(data[at : at + width], "big") & ~(1 << 7 * width)
        start = at + width
        end = len(data) if length == (1 << 7 * width) - 1 else start + length
        body = data[start:end]
        parts.append(Part(tag, parse_ebml(body) if tag in MASTERS else body))
        place = end
    return parts


def build_ebml(parts: list[Part]) -> bytes:
    """Elements with sizes of eight bytes."""
    bodies = [part.body if isinstance(part.body, bytes) else build_ebml(part.body) for part in parts]
    return b"".join(p.tag + (1 << 56 | len(b)).to_bytes(8, "big") + b for p, b in zip(parts, bodies, strict=True))


def parse_jpeg(data: bytes) -> list[Part]:
    """Segments by their marker; the first scan and what follows is one part without."""
    parts = []
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place : place + 2]
        (length,) = struct.unpack_from(">H", data, place + 2)
        parts.append(Part(marker, data[place + 4 : place + 2 + length]))
        place += 2 + length
        if marker == b"\xff\xda":
            break
    return [*parts, Part(b"", data[place:])]


def build_jpeg(parts: list[Part]) -> bytes:
    """A file of segments with their lengths."""
    pieces = [
        p.tag + struct.pack(">H", (2 + len(p.body)) % 65536) + p.body if p.tag else p.body
        for p in parts
        if isinstance(p.body, bytes)
    ]
    return b"\xff\xd8" + b"".join(pieces)


def parse_gif(data: bytes) -> list[Part]:
    """Header with palette, then extensions and pictures, each with its sub-blocks."""

    def palette(flags: int) -> int:
        return 3 * 2 ** (flags % 8 + 1) if flags & 0x80 else 0

    parts = [Part(b"", data[: (place := 13 + palette(data[10]))])]
    while place < len(data) and data[place] in (0x21, 0x2C):
        end = place + 2 if data[place] == 0x21 else place + 11 + palette(data[place + 9])
        parts.append(Part(b"", data[place:end]))
        place = end
        while place < len(data) and data[place]:
            parts.append(Part(b"", data[place : place + 1 + data[place]]))
            place += 1 + data[place]
        parts.append(Part(b"", data[place : place + 1]))
        place += 1
    return [*parts, Part(b"", data[place:])]


def build_gif(parts: list[Part]) -> bytes:
    """The parts one after another."""
    return b"".join(part.tag + part.body for part in parts if isinstance(part.body, bytes))


def read_varint(data: bytes, place: int) -> tuple[int, int]:
    """(value, place after it)."""
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place


def varint(value: int) -> bytes:
    """A number in groups of seven bits."""
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def parse_protobuf(data: bytes) -> list[Part]:
    """Fields by their key. A field of bytes that reads as a message is taken for one; IndexError where it is none."""
    parts = []
    place = 0
    while place < len(data):
        start = place
        key, place = read_varint(data, place)
        tag = data[start:place]
        wire = key % 8
        if not 0 < key >> 3 < 1000 or wire not in (0, 1, 2, 5):
            raise IndexError
        if wire == 2:
            length, place = read_varint(data, place)
            end = place + length
        elif wire == 0:
            end = read_varint(data, place)[1]
        else:
            end = place + (8 if wire == 1 else 4)
        if end > len(data):
            raise IndexError
        body: bytes | list[Part] = data[place:end]
        if wire == 2 and end > place + 1:
            try:
                body = parse_protobuf(data[place:end])
            except IndexError:
                body = data[place:end]
        parts.append(Part(tag, body))
        place = end
    return parts


def build_protobuf(parts: list[Part]) -> bytes:
    """A message of fields, the lengths of those that have one written anew."""
    pieces = []
    for part in parts:
        body = part.body if isinstance(part.body, bytes) else build_protobuf(part.body)
        sized = not part.tag or part.tag[0] % 8 == 2
        pieces.append(part.tag + (varint(len(body)) if sized else b"") + body)
    return b"".join(pieces)


def damage_safetensors(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    """The header's document, its length, the place where it ends, or the file's bytes."""
    length = int.from_bytes(data[:8], "little")
    way = rng.random()
    if way < 0.2:
        return damage_bytes(rng, data, others)
    if way < 0.3:
        return data[: rng.choice((rng.randrange(len(data)), rng.randrange(16), 8 + length, len(data) - 1))]
    text = as_json(rng, damage_document(rng, json.loads(data[8 : 8 + length])))
    size = rng.choice((len(text),) * 12 + (len(text) - 1, len(text) + 1, 0, 2**40, 2**64 - 1))
    return (size % 2**64).to_bytes(8, "little") + text + data[8 + length :]


damage_png = damage_file(parse_png, build_png)
damage_riff = damage_file(parse_riff, build_riff)
damage_mp4 = damage_file(parse_mp4, build_mp4)
damage_ebml = damage_file(parse_ebml, build_ebml)
damage_jpeg = damage_file(parse_jpeg, build_jpeg)
damage_gif = damage_file(parse_gif, build_gif)
damage_protobuf = damage_file(parse_protobuf, build_protobuf)
