"""Random damage, repeatable by its seed: to bytes, to JSON documents, and to files made of tagged parts.

Every function takes the `Random` that decides. What comes out is often still well-formed enough to get past the first
check of a reader, which is the point: plain noise never does.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

EDGES = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def damage_bytes(rng: Random, data: bytes, others: list[bytes], most: int = 4) -> bytes:
    """`data` after one to `most` edits; `others` lend pieces."""
    result = bytearray(data)
    for _ in range(rng.randint(1, most)):
        place = rng.randrange(len(result) + 1) if rng.random() < 0.6 else rng.randrange(min(len(result), 64) + 1)
        length = rng.choice((1, 2, 4, 8, 16, rng.randint(1, 256)))
        edit = rng.randrange(9)
        if edit == 0 and place < len(result):
            result[place] ^= 1 << rng.randrange(8)
        elif edit == 1 and place < len(result):
            result[place] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif edit in (2, 3):
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice((*EDGES, rng.getrandbits(64))) % 256**width
            result[place : place + width] = number.to_bytes(width, rng.choice(("little", "big")))
        elif edit == 4:
            del result[place : place + length]
        elif edit == 5:
            result[place:place] = result[place : place + length]
        elif edit == 6:
            result[place : place + length] = rng.randbytes(length)
        elif edit == 7:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            result[place : place + length] = other[start : start + length]
        elif edit == 8 and rng.random() < 0.5:
            del result[place:]
    return bytes(result)


# Stand in a document for what json.dumps does not write, and are put into its text.
RAW = {
    "@deep@": "[" * 3000 + "]" * 3000,
    "@deeper@": '{"a":' * 100_000 + "0" + "}" * 100_000,
    "@digits@": "9" * 5000,
    "@huge@": "1e400",
    "@minus@": "-1e400",
    "@surrogate@": '"\\ud800"',
    "@half@": '"text \\udfff and more"',
    "@nul@": '"a\\u0000b"',
    "@controls@": '"\\u001b[31m\\r\\n\\u2028\\u202e"',
    "@long@": '"' + "x" * 70_000 + '"',
}
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 8, 100, 255, 65536, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 0.0,
    -0.0, 0.5, 1.5, -2.5, 1e-320, 1e-30, 1e30, 1e308, float("nan"), float("inf"), "", " ", "0", "-1", "null", "true",
    "é", "\U0001f600", "\u0301", "a/b", "../..", "..", "/", "\\", "~", "%00", "{{ 7 }}", "{% raw %}", "file:///etc/passwd",
    "http://[::1", "data:image/png;base64,", "data:image/png;base64,AAAA", [], {}, [0], [None], [[]], {"a": 1},
    {"type": "text"}, {"content": "x"}, [1, 2, 3], *RAW,
)  # fmt: skip


def places(document: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of every value in a document."""
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        item = waiting.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
        found += [(item, key) for key in keys]
        waiting += [item[key] for key in keys]
    return found


def damage_document(rng: Random, document: Any) -> Any:
    """A copy of a JSON document after one to three edits."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        known = places(document)
        if not known:
            return rng.choice(VALUES)
        # The top has few places and the depths have many: half of the edits go to the top.
        top = [place for place in known if place[0] is document]
        inside, key = rng.choice(top if rng.random() < 0.3 else known)
        value = inside[key]
        edit = rng.randrange(9)
        if edit <= 2:
            inside[key] = rng.choice(VALUES)
        elif edit == 3:
            del inside[key]
        elif edit == 4 and isinstance(value, int | float):
            inside[key] = rng.choice((value + 1, value - 1, value * 2, -value, value / 2, value * 1000, str(value)))
        elif edit == 4 and isinstance(value, str):
            inside[key] = damage_text(rng, value)
        elif edit == 5:
            other, name = rng.choice(known)
            inside[key] = copy.deepcopy(other[name]) if name in _keys(other) else None
        elif edit == 6 and isinstance(inside, dict):
            name = rng.choice((damage_text(rng, str(key)), "", "\x00", "__class__", *RAW))
            inside[name] = inside.pop(key)
        elif edit == 7:
            inside[key] = rng.choice(([value], {"value": value}, [value, value], str(value), [value] * 30))
        elif edit == 8 and isinstance(inside, list):
            inside.insert(key, copy.deepcopy(rng.choice(inside)))
    return document


def _keys(container: Any) -> Any:
    return container if isinstance(container, dict) else range(len(container))


INSERTS = (" ", "\x00", "\n", "\u202e", "\ud800", "é", "<|IMAGE_PLACEHOLDER|>", "/", "..", "}}", "{{", "%}")


def damage_text(rng: Random, text: str) -> str:
    """A text after one edit."""
    place = rng.randrange(len(text) + 1)
    insert = rng.choice(INSERTS)
    return rng.choice((text[:place], text[place:], text[:place] + insert + text[place:], text + text, text.upper()))


def as_json(rng: Random, document: Any) -> bytes:
    """The text of a document; sometimes in another encoding, with a key twice, or damaged as text."""
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    if rng.random() < 0.03:
        text = text.replace("{", '{"twice": 1, "twice": 2, ', 1)
    data = text.encode(rng.choice(("utf-8",) * 20 + ("utf-16", "utf-8-sig", "utf-32")), "surrogatepass")
    return damage_bytes(rng, data, [data]) if rng.random() < 0.15 else data


def damage_json(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    """A JSON file after damage to the document, or now and then to its bytes alone."""
    if rng.random() < 0.1:
        return damage_bytes(rng, data, others)
    return as_json(rng, damage_document(rng, json.loads(data)))


@dataclass
class Part:
    """A tagged piece of a file: its tag as stored, and its bytes or the parts that it is made of."""

    tag: bytes
    body: "bytes | list[Part]"


def damage_parts(rng: Random, parts: list[Part]) -> None:
    """One to three edits of a tree of parts, in place."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        inside = _some_list(rng, parts)
        if not inside:
            continue
        index = rng.randrange(len(inside))
        edit = rng.randrange(8)
        part = inside[index]
        if edit <= 3 and isinstance(part.body, bytes):
            part.body = damage_bytes(rng, part.body, [part.body], most=2)
        elif edit == 4:
            del inside[index]
        elif edit == 5:
            inside.insert(rng.randrange(len(inside) + 1), copy.deepcopy(part))
        elif edit == 6:
            other = rng.randrange(len(inside))
            part.body, inside[other].body = inside[other].body, part.body
        elif edit == 7:
            part.tag = rng.choice((rng.choice(inside).tag, damage_bytes(rng, part.tag, [part.tag], most=1)))


def _some_list(rng: Random, parts: list[Part]) -> list[Part]:
    """The list of parts at a random depth."""
    while True:
        deeper = [part.body for part in parts if isinstance(part.body, list) and part.body]
        if not deeper or rng.random() < 0.2:
            return parts
        parts = rng.choice(deeper)


def damage_file(
    parse: Callable[[bytes], list[Part]], build: Callable[[list[Part]], bytes]
) -> Callable[[Random, bytes, list[bytes]], bytes]:
    """How to damage files of a format that `parse` takes apart and `build` puts together, sizes and sums right again.

    A quarter of the damage goes to the bytes as well, or to them alone.
    """

    def damage(rng: Random, data: bytes, others: list[bytes]) -> bytes:
        way = rng.random()
        if way > 0.15:
            parts = parse(data)
            damage_parts(rng, parts)
            data = build(parts)
        return damage_bytes(rng, data, others) if way < 0.25 else data

    return damage
