"""Read JSON objects key by key, so that every refusal names file and key and no key goes unread."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ernie_export.common import git_lfs
from ernie_export.common.errors import InvalidFile, InvalidValue, UserError

MAX_JSON_BYTES = 64 * 2**20  # an index of the released model is below 4 MiB
FLOAT32_MAX = 3.4028234e38
MISSING = object()
T = TypeVar("T")


def one_line(value: object, limit: int = 80) -> str:
    """Return `value` as JSON-like text of one line, shortened to `limit` characters.

    Of a text no more is looked at: it may be as large as a request.
    """
    if isinstance(value, str):
        value = value[: limit + 1]
    try:
        plain = isinstance(value, str) and value.strip() and value.isprintable()
        text = str(value) if plain else json.dumps(value, default=repr)
    except (ValueError, RecursionError):  # an integer of thousands of digits; nesting
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def reject_duplicate_keys(source: Path | str, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's members as a dict.

    Raises InvalidFile or InvalidValue for a key that occurs twice, since readers differ on which one counts.
    """
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise _invalid(source, "once", "twice in one JSON object", key=one_line(key))
        members[key] = value
    return members


def parse_json_value(source: Path | str, text: bytes) -> Any:
    """Parse the JSON document in `text`.

    Args:
        source: File that the text was read from, or the name of the input that holds it.
        text: JSON in UTF-8, UTF-16 or UTF-32.

    Raises:
        InvalidFile: What is in file `source` is not JSON.
        InvalidValue: What is in input `source` is not JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: reject_duplicate_keys(source, pairs))
    except (ValueError, RecursionError) as e:
        if git_lfs.is_pointer(text):
            raise _invalid(source, "JSON", git_lfs.FOUND, hint=git_lfs.HINT) from e
        raise _invalid(source, "JSON", one_line(" ".join(str(e).split()))) from e


def parse_json(source: Path | str, text: bytes) -> dict[str, Any]:
    """Parse the JSON object in `text`. Raises what `parse_json_value` does, also for another kind of document."""
    value = parse_json_value(source, text)
    if not isinstance(value, dict):
        raise _invalid(source, "a JSON object", one_line(value))
    return value


def parse_json_list(source: Path | str, text: bytes) -> list[Any]:
    """Parse the JSON list in `text`. Raises what `parse_json_value` does, also for another kind of document."""
    value = parse_json_value(source, text)
    if not isinstance(value, list):
        raise _invalid(source, "a JSON list", one_line(value))
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in file `path`. Raises InvalidFile if it is missing, unreadable, too large or no object."""
    return parse_json(path, read_json_text(path))


def read_json_text(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Read the bytes of a JSON file. Raises InvalidFile if it is missing, unreadable or larger than `max_bytes`."""
    try:
        if not path.is_file():
            raise InvalidFile(path, "a JSON file", "a folder" if path.is_dir() else "no file")
        size = path.stat().st_size
        if size > max_bytes:
            raise InvalidFile(path, f"JSON of at most {max_bytes} bytes", size)
        return path.read_bytes()
    except OSError as e:
        raise InvalidFile(path, "a readable file", e.strerror or e) from e


def _invalid(source: Path | str, expected: str, found: str, key: str | None = None, hint: str = "") -> UserError:
    if isinstance(source, Path):
        return InvalidFile(source, expected, found, key=key, hint=hint)
    return InvalidValue(source if key is None else f"{source}: {key}", expected, found, hint=hint)


class JsonObject:
    """One JSON object of a file. Reading a key marks it as known; what was never read is refused, or noted as ignored.

    Every method that reads a key raises InvalidFile, naming file and key, for a value that it does not accept. A
    `default` replaces a missing key or null; without one the key must be there.
    """

    def __init__(
        self, path: Path, prefix: str, members: dict[str, Any], ignored: list[tuple[Path, str]] | None = None
    ) -> None:
        """Wrap the members of one object.

        Args:
            path: File that holds the object.
            prefix: Dotted path of the object in its file, with a trailing dot; empty for the whole file.
            members: The object itself.
            ignored: Receives file and key of what `ignore_unknown` finds; a list of the object's own where None.
        """
        self.ignored = [] if ignored is None else ignored
        self.path = path
        self.prefix = prefix
        self.members = members
        self.read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        """Return whether the object has `key`, even if it is null."""
        return key in self.members

    def error(self, key: str, expected: str, found: object = MISSING) -> InvalidFile:
        """Return the refusal of `key`, to be raised by the caller.

        Args:
            key: A key of this object.
            expected: What would be accepted.
            found: What is there instead, in words; by default the value of `key` as JSON.
        """
        if found is MISSING:
            value = self.members.get(key, MISSING)
            found = "no such key" if value is MISSING else f'"{value}"' if isinstance(value, str) else value
        return InvalidFile(self.path, expected, one_line(found), key=f"{self.prefix}{one_line(key)}")

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key` unchecked; `default` replaces a missing key, but not null."""
        self.read.add(key)
        return self.members.get(key, default)

    def optional(self, key: str, read: Callable[[str], T]) -> T | None:
        """Return `read(key)`, where `read` is a method of this object, or None for a missing key or null."""
        return None if self.get(key) is None else read(key)

    def require(self, key: str, expected: str, alias: str | None = None) -> Any:
        """Return the value of `key`, or of its other name `alias`. Both may be there if they are equal.

        Raises InvalidFile, which says that `expected` was expected, if neither is there.
        """
        value = self.get(key, MISSING)
        if alias is not None and (other := self.get(alias, MISSING)) is not MISSING:
            if value is not MISSING and value != other:
                raise self.error(alias, f"the same as {key} {one_line(value)}", other)
            value = other
        if value is MISSING:
            raise self.error(key, expected, "no such key")
        return value

    def integer(
        self, key: str, alias: str | None = None, *, minimum: int = 1, maximum: int, default: int | None = None
    ) -> int:
        """Return a whole number.

        Args:
            key: The key.
            alias: Another name of the key.
            minimum: Smallest number accepted.
            maximum: Largest number accepted.
            default: Replaces a missing key or null.
        """
        if default is not None and self.get(key) is None:
            return default
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
            raise self.error(key, expected)
        return tuple(value)

    def pair(self, key: str, default: tuple[int, int] | None = None) -> tuple[int, int]:
        """Return a list of two positive whole numbers."""
        first, second = self._sizes(key, 2, default)
        return first, second

    def triple(self, key: str, default: tuple[int, int, int] | None = None) -> tuple[int, int, int]:
        """Return a list of three positive whole numbers."""
        first, second, third = self._sizes(key, 3, default)
        return first, second, third

    def _sizes(self, key: str, count: int, default: tuple[int, ...] | None) -> tuple[int, ...]:
        if default is not None and self.get(key) is None:
            return default
        expected = f"a list of {count} whole numbers from 1"
        value = self.require(key, expected)
        if not isinstance(value, list) or len(value) != count or not all(type(n) is int and n > 0 for n in value):
            raise self.error(key, expected)
        return tuple(value)

    def positive(self, key: str, default: float | None = None) -> float:
        """Return a number above 0 that float32 can hold."""
        if default is not None and self.get(key) is None:
            return default
        expected = "a number above 0 that fits float32"
        value = self.require(key, expected)
        if type(value) not in (int, float) or not 0 < value <= FLOAT32_MAX:
            raise self.error(key, expected)
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return true or false."""
        if default is not None and self.get(key) is None:
            return default
        value = self.require(key, "true or false")
        if type(value) is not bool:
            raise self.error(key, "true or false")
        return value

    def text(self, key: str, empty: bool = False, default: str | None = None) -> str:
        """Return a string.

        Args:
            key: The key.
            empty: Whether the string may be empty.
            default: Replaces a missing key or null.
        """
        if default is not None and self.get(key) is None:
            return default
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

    def object(self, key: str, default: dict[str, Any] | None = None) -> "JsonObject":
        """Return the object under `key`."""
        value = self.get(key)
        if value is None and default is not None:
            value = default
        if not isinstance(value, dict):
            raise self.error(key, "an object", value if key in self else "no such key")
        return JsonObject(self.path, f"{self.prefix}{key}.", value, self.ignored)

    def with_defaults(self, defaults: Mapping[str, Any], aliases: Mapping[str, str]) -> "JsonObject":
        """Return the object with `defaults` for keys that it has neither by their name nor by their other name.

        Args:
            defaults: Value of each key.
            aliases: Other name of each key that has one.
        """
        missing = {key: value for key, value in defaults.items() if not {key, aliases.get(key)} & self.members.keys()}
        filled = JsonObject(self.path, self.prefix, missing | self.members, self.ignored)
        filled.read = self.read
        return filled

    def expect_one_of(self, values: Mapping[str, Sequence[Any]]) -> None:
        """Refuse a key of `values` with any other value than its own; a missing key is accepted."""
        for key, accepted in values.items():
            if key in self and self.get(key) not in accepted:
                raise self.error(key, " or ".join(one_line(value) for value in accepted) or "no such key")

    def ignore_unknown(self, known: Collection[str] = ()) -> None:
        """Note the keys that were neither read nor listed in `known`, with their file, in `ignored`."""
        unknown = (key for key in self.members if key not in self.read and key not in known)
        self.ignored.extend((self.path, f"{self.prefix}{one_line(key)}") for key in unknown)

    def refuse_unknown(self, known: Collection[str] = ()) -> None:
        """Refuse keys that were neither read nor listed in `known`."""
        for key in self.members:
            if key not in self.read and key not in known:
                raise self.error(key, "a known key", "an unknown one")
