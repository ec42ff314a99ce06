"""Read JSON objects key by key, so that every refusal names file and key and no key goes unread."""

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from ernie_export.common.errors import InvalidFile

MAX_JSON_BYTES = 64 * 2**20  # an index of the released model is below 4 MiB
FLOAT32_MAX = 3.4028234e38
MISSING = object()


def one_line(value: object, limit: int = 80) -> str:
    """Return `value` as JSON-like text of one line, shortened to `limit` characters."""
    try:
        plain = isinstance(value, str) and value.strip() and value.isprintable()
        text = str(value) if plain else json.dumps(value, default=repr)
    except (ValueError, RecursionError):  # an integer of thousands of digits; nesting
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def reject_duplicate_keys(path: Path, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's members as a dict. Raises InvalidFile for a key that occurs twice, since readers differ on
    which one counts.
    """
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise InvalidFile(path, "once", "twice in one JSON object", key=one_line(key))
        members[key] = value
    return members


def parse_json(path: Path, text: bytes) -> dict[str, Any]:
    """Parse the JSON object in `text`, which was read from `path`. Raises InvalidFile for anything else."""
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: reject_duplicate_keys(path, pairs))
    except (ValueError, RecursionError) as e:
        raise InvalidFile(path, "JSON", one_line(" ".join(str(e).split()))) from e
    if not isinstance(value, dict):
        raise InvalidFile(path, "a JSON object", one_line(value))
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in file `path`. Raises InvalidFile if it is missing, unreadable, too large or no object."""
    try:
        if not path.is_file():
            raise InvalidFile(path, "a JSON file", "a folder" if path.is_dir() else "no file")
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise InvalidFile(path, f"JSON of at most {MAX_JSON_BYTES} bytes", size)
        text = path.read_bytes()
    except OSError as e:
        raise InvalidFile(path, "a readable file", e.strerror) from e
    return parse_json(path, text)


class JsonObject:
    """One JSON object of a file. Reading a key marks it as known; `refuse_unknown` refuses what was never read.

    Every method that reads a key raises InvalidFile, naming file and key, for a value that it does not accept.
    """

    def __init__(self, path: Path, prefix: str, members: dict[str, Any]) -> None:
        """`prefix`: dotted place of the object in its file, with a trailing dot; empty for the whole file."""
        self.path = path
        self.prefix = prefix
        self.members = members
        self.read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self.members

    def error(self, key: str, expected: str, found: object) -> InvalidFile:
        """Return the refusal of `key`, to be raised by the caller."""
        return InvalidFile(self.path, expected, one_line(found), key=f"{self.prefix}{one_line(key)}")

    def get(self, key: str, absent: Any = None) -> Any:
        """Return the value of `key` unchecked, or `absent`."""
        self.read.add(key)
        return self.members.get(key, absent)

    def require(self, key: str, expected: str, alias: str | None = None) -> Any:
        """Return the value of `key`, or of its other name `alias`. Both may be there if they are equal."""
        value = self.get(key, MISSING)
        if alias is not None and (other := self.get(alias, MISSING)) is not MISSING:
            if value is not MISSING and value != other:
                raise self.error(alias, f"the same as {key} {one_line(value)}", other)
            value = other
        if value is MISSING:
            raise self.error(key, expected, "no such key")
        return value

    def integer(self, key: str, alias: str | None = None, *, minimum: int = 1, maximum: int) -> int:
        """Return a whole number from `minimum` to `maximum`."""
        expected = f"a whole number from {minimum} to {maximum}"
        value = self.require(key, expected, alias)
        if type(value) is not int or not minimum <= value <= maximum:
            raise self.error(key, expected, value)
        return value

    def integers(self, key: str, *, minimum: int = 1, maximum: int) -> tuple[int, ...]:
        """Return a list of any length of whole numbers from `minimum` to `maximum`."""
        expected = f"a list of whole numbers from {minimum} to {maximum}"
        value = self.require(key, expected)
        if not isinstance(value, list) or not all(type(n) is int and minimum <= n <= maximum for n in value):
            raise self.error(key, expected, value)
        return tuple(value)

    def sizes(self, key: str, count: int, absent: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Return a list of `count` positive whole numbers; `absent`, if given, replaces a missing key or null."""
        expected = f"a list of {count} whole numbers from 1"
        if absent is not None and self.get(key) is None:
            return absent
        value = self.require(key, expected)
        if not isinstance(value, list) or len(value) != count or not all(type(n) is int and n > 0 for n in value):
            raise self.error(key, expected, value)
        return tuple(value)

    def positive(self, key: str) -> float:
        """Return a number above 0 that float32 can hold."""
        expected = "a number above 0 that fits float32"
        value = self.require(key, expected)
        if type(value) not in (int, float) or not 0 < value <= FLOAT32_MAX:
            raise self.error(key, expected, value)
        return float(value)

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self.require(key, "true or false")
        if type(value) is not bool:
            raise self.error(key, "true or false", value)
        return value

    def text(self, key: str, empty: bool = False) -> str:
        """Return a string, which must not be empty unless `empty`."""
        expected = "text" if empty else "text that is not empty"
        value = self.require(key, expected)
        if not isinstance(value, str) or not (value or empty):
            raise self.error(key, expected, value)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings."""
        value = self.require(key, "a list of texts")
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self.error(key, "a list of texts", value)
        return tuple(value)

    def choice(self, key: str, choices: Sequence[str]) -> str:
        """Return one of `choices`."""
        expected = " or ".join(choices)
        value = self.require(key, expected)
        if not isinstance(value, str) or value not in choices:
            raise self.error(key, expected, value)
        return value

    def expect(self, key: str, value: str) -> None:
        """Refuse any value of `key` but `value`."""
        found = self.require(key, value)
        if found != value:
            raise self.error(key, value, found)

    def object(self, key: str, absent: dict[str, Any] | None = None) -> "JsonObject":
        """Return the object under `key`; `absent`, if given, replaces a missing key or null."""
        value = self.get(key)
        if value is None and absent is not None:
            value = absent
        if not isinstance(value, dict):
            raise self.error(key, "an object", value if key in self else "no such key")
        return JsonObject(self.path, f"{self.prefix}{key}.", value)

    def refuse_unknown(self, known: Collection[str] = ()) -> None:
        """Refuse keys that were neither read nor listed in `known`."""
        for key in self.members:
            if key not in self.read and key not in known:
                raise self.error(key, "a known key", "an unknown one")
