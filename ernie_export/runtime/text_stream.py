"""Text as tokens arrive: what is shown never has to be taken back, and stop strings are never shown."""

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

REPLACEMENT = "\ufffd"
LONGEST_WINDOW = 12  # tokens decoded together before the older ones are dropped
SHORTEST_WINDOW = 4  # tokens kept then: an unfinished UTF-8 character spans three tokens at most


def byte_token_ids(vocabulary: Mapping[str, int]) -> frozenset[int]:
    """Ids of the byte-fallback pieces `<0x00>` to `<0xFF>` of a vocabulary (piece -> id)."""
    return frozenset(id for piece, id in vocabulary.items() if re.fullmatch("<0x[0-9A-F]{2}>", piece))


def longest_ending(text: str, mark: str) -> int:
    """Return the length of the longest ending of a text that begins `mark` and is not all of it."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)


class TextStream:
    """Turns token ids into pieces of text. Joined together, the pieces are `decode(all ids)` cut before a stop string.

    Two kinds of text are held back. First, what later tokens may change: a byte-fallback decoder shows a run of byte
    tokens as text only if the whole run is valid UTF-8 (else each byte is U+FFFD), so a run is held until another token
    ends it; a byte-level decoder shows an unfinished character as U+FFFD, so one at the end is held. Second, an ending
    that may grow into a stop string.

    A decoder drops the first space of what it is given, so a token is decoded after the few that precede it. Its cost
    is bounded, except within a run of byte tokens when there are stop strings: each token then decodes the run so far,
    since a stop string such as a line feed would otherwise be seen one token late.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        stop: Iterable[str] = (),
        byte_tokens: frozenset[int] = frozenset(),
        shown: Mapping[int, str] = MappingProxyType({}),
        include_stop: bool = False,
    ) -> None:
        """Start an empty text.

        Args:
            decode: Ids to text.
            stop: Strings that end the text.
            byte_tokens: As from `byte_token_ids`, if there are any.
            shown: Texts of the special tokens that are part of the text all the same, by their ids.
            include_stop: Whether the stop string is part of the text.
        """
        self.stop_string = ""  # that has ended the text
        self._shown = shown
        self._decode = decode
        self._byte_tokens = byte_tokens
        self._include_stop = include_stop
        self._window: list[int] = []
        self._done = 0  # characters of the decoded window that have been taken
        self._finder = _StopFinder(tuple(stop))
        self._held = ""  # taken, not shown: the beginning of a stop string
        self._pieces: list[str] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return bool(self.stop_string)

    @property
    def text(self) -> str:
        """Everything returned so far."""
        return "".join(self._pieces)

    def push(self, token: int) -> str:
        """Take one more token; returns new text, perhaps none. Once `stopped`, always none."""
        if token in self._shown and not self.stopped:
            rest = self._decode(self._window)[self._done :]
            self._window = []
            self._done = 0
            return self._show(rest + self._shown[token])
        # A special token decodes to nothing however often it stands; a lone space too, but not two of them.
        if self.stopped or not self._decode([token, token]):
            return ""
        self._window.append(token)
        if token in self._byte_tokens:
            return self._stop_within_run()
        text = self._decode(self._window)
        end = len(text) - text.endswith(REPLACEMENT)
        new = text[self._done : end]
        self._done = end
        if len(self._window) > LONGEST_WINDOW:
            self._window = self._window[-SHORTEST_WINDOW:]
            text = self._decode(self._window)
            self._done = len(text) - text.endswith(REPLACEMENT)
        return self._show(new)

    def finish(self) -> str:
        """Take the end of the answer; returns the text that was held back."""
        rest = self._decode(self._window)[self._done :]
        self._window = []
        self._done = 0
        return self._show(rest, last=True)

    def _stop_within_run(self) -> str:
        """Look for a stop string in a run of byte tokens that is still open; returns text only if there is one."""
        if not self._finder.stop:
            return ""
        run = self._decode(self._window)[self._done :]
        if run.endswith(REPLACEMENT) or not self._finder.would_stop(run):
            return ""
        return self._show(run)

    def _show(self, new: str, last: bool = False) -> str:
        """Return what can be shown of the held text and `new`; all of it if this is the last."""
        if self.stopped:
            return ""
        found = self._finder.feed(new)
        text = self._held + new
        if found is not None:
            self.stop_string = text[len(self._held) + found.start : len(self._held) + found.stop]
            cut = len(self._held) + (found.stop if self._include_stop else found.start)
        else:
            cut = len(text) if last else len(text) - self._finder.partial
        self._held = "" if self.stopped else text[cut:]
        if cut:
            self._pieces.append(text[:cut])
        return text[:cut]


class _StopFinder:
    """Knuth, Morris and Pratt's search for several strings at once, fed in pieces; the first to be complete wins."""

    def __init__(self, stop: tuple[str, ...]):
        self.stop = stop
        self._fallbacks = [_borders(text) for text in stop]
        self._matched = [0] * len(stop)  # for each string, how much of its beginning the text ends with

    @property
    def partial(self) -> int:
        """Length of the longest ending of the text that begins a stop string."""
        return max(self._matched, default=0)

    def feed(self, text: str) -> slice | None:
        """Read `text`; returns where in it a stop string stands (from below 0: in an earlier text), or None."""
        for position, character in enumerate(text if self.stop else ""):
            for i, (stop, fallback) in enumerate(zip(self.stop, self._fallbacks, strict=True)):
                matched = self._matched[i]
                while matched and stop[matched] != character:
                    matched = fallback[matched - 1]
                self._matched[i] = matched + (stop[matched] == character)
            complete = [
                len(stop) for stop, matched in zip(self.stop, self._matched, strict=True) if len(stop) == matched
            ]
            if complete:
                return slice(position + 1 - max(complete), position + 1)
        return None

    def would_stop(self, text: str) -> bool:
        """Whether `feed(text)` would find a stop string; changes nothing."""
        before = list(self._matched)
        found = self.feed(text) is not None
        self._matched = before
        return found


def _borders(text: str) -> list[int]:
    """For each beginning of `text`, the length of its longest proper ending that begins `text` too."""
    borders = [0] * len(text)
    for i in range(1, len(text)):
        length = borders[i - 1]
        while length and text[length] != text[i]:
            length = borders[length - 1]
        borders[i] = length + (text[length] == text[i])
    return borders
