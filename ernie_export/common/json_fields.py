"""A JSON object read key by key, so that every refusal names file and key and no key goes unread."""

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ernie_export.common.errors import UserError

JSON_LIMIT = 64 * 2**20  # bytes; an index of the released model is below 4 MiB
FLOAT32_MAX = 3.4028234e38
ABSENT = object()


def one_line(value: object, limit: int = 80) -> str:
    """`value` as JSON-like text of one line, shortened to `limit` characters."""
    try:
        plain = isinstance(value, str) and value.strip() and value.isprintable()
        text = str(value) if plain else json.dumps(value, default=repr)
    except (ValueError, RecursionError):  # an integer of thousands of digits; nesting
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def without_twins(path: Path, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An object's members as a dict; UserError on a key that stands twice (which one counts is anybody's guess)."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise UserError(f"{path}: {one_line(key)}: expected once, found twice in one JSON object")
        found[key] = value
    return found


def parse_json(path: Path, text: bytes) -> dict[str, Any]:
    """The JSON object in `text`, which came from `path`; UserError if it is none."""
    try:
        found = json.loads(text, object_pairs_hook=lambda pairs: without_twins(path, pairs))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: expected JSON, found {one_line(' '.join(str(e).split()))}") from e
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, found {one_line(found)}")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in file `path`; UserError if the file is missing, unreadable, too large or not a JSON object."""
    try:
        if not path.is_file():
            raise UserError(f"{path}: expected a JSON file, found {'a folder' if path.is_dir() else 'no file'}")
        size = path.stat().st_size
        if size > JSON_LIMIT:
            raise UserError(f"{path}: expected JSON of at most {JSON_LIMIT} bytes, found {size}")
        text = path.read_bytes()
    except OSError as e:
        raise UserError(f"{path}: expected a readable file, found {e.strerror}") from e
    return parse_json(path, text)


class Section:
    """One JSON object of a file. Reading a key marks it as known; `refuse_unknown` refuses what was never read."""

    def __init__(self, path: Path, prefix: str, members: dict[str, Any]) -> None:
        self.path = path
        self.prefix = prefix
        self.members = members
        self.read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self.members

    def error(self, key: str, expected: str, found: object) -> UserError:
        """The refusal of `key`, to be raised by the caller."""
        return UserError(f"{self.path}: {self.prefix}{one_line(key)}: expected {expected}, found {one_line(found)}")

    def get(self, key: str, absent: Any = None) -> Any:
        """The value of `key` as it stands."""
        self.read.add(key)
        return self.members.get(key, absent)

    def need(self, key: str, expected: str, alias: str | None = None) -> Any:
        """The value of `key` or of its other name `alias`; refused when absent, or when both are there and differ."""
        found = self.get(key, ABSENT)
        if alias is not None and (other := self.get(alias, ABSENT)) is not ABSENT:
            if found is not ABSENT and found != other:
                raise self.error(alias, f"the same as {key} {one_line(found)}", other)
            found = other
        if found is ABSENT:
            raise self.error(key, expected, "no such key")
        return found

    def size(self, key: str, alias: str | None = None, *, least: int = 1, limit: int) -> int:
        """A whole number from `least` to `limit`."""
        expected = f"a whole number from {least} to {limit}"
        found = self.need(key, expected, alias)
        if type(found) is not int or not least <= found <= limit:
            raise self.error(key, expected, found)
        return found

    def sizes(self, key: str, count: int, absent: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """A list of `count` positive whole numbers; `absent`, where given, stands in for a missing key or null."""
        expected = f"a list of {count} whole numbers from 1"
        if absent is not None and self.get(key) is None:
            return absent
        found = self.need(key, expected)
        if not isinstance(found, list) or len(found) != count or not all(type(n) is int and n > 0 for n in found):
            raise self.error(key, expected, found)
        return tuple(found)

    def positive(self, key: str) -> float:
        """A number above 0 that float32 can hold."""
        expected = "a number above 0 that fits float32"
        found = self.need(key, expected)
        if type(found) not in (int, float) or not 0 < found <= FLOAT32_MAX:
            raise self.error(key, expected, found)
        return float(found)

    def flag(self, key: str) -> bool:
        """true or false."""
        found = self.need(key, "true or false")
        if type(found) is not bool:
            raise self.error(key, "true or false", found)
        return found

    def expect(self, key: str, value: str) -> None:
        """Refuse any value of `key` but `value`."""
        found = self.need(key, value)
        if found != value:
            raise self.error(key, value, found)

    def section(self, key: str, absent: dict[str, Any] | None = None) -> "Section":
        """The object under `key`; `absent`, where given, stands in for a missing key or null."""
        found = self.get(key)
        if found is None and absent is not None:
            found = absent
        if not isinstance(found, dict):
            raise self.error(key, "an object", found if key in self else "no such key")
        return Section(self.path, f"{self.prefix}{key}.", found)

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Refuse keys that were neither read nor listed in `known`."""
        for key in self.members:
            if key not in self.read and key not in known:
                raise self.error(key, "only keys that the configuration class has", "an unknown key")
