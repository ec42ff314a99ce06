"""Lines typed at a terminal: edited, completed with Tab, and found again in later sessions."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory


def read_lines(commands: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """Prompt for lines until Ctrl-D; Ctrl-C begins a line anew. `commands`: argument and description by name."""
    session: PromptSession[str] = PromptSession(
        "> ", completer=CommandCompleter(commands), complete_while_typing=False, history=kept_history()
    )
    while True:
        try:
            line = session.prompt()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        yield line


class CommandCompleter(Completer):
    """A completer of command names, and of paths after a command that takes one."""

    def __init__(self, commands: Mapping[str, tuple[str, str]]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield the commands, or the paths for a command that takes one, that go on as the line does."""
        name, space, rest = document.text_before_cursor.partition(" ")
        if not space:
            for command, (metavar, text) in self._commands.items():
                if name and command.startswith(name):
                    end = " " if metavar else ""
                    yield Completion(command + end, -len(name), display=command, display_meta=text)
        elif self._commands.get(name, ("", ""))[0] in ("PATH", "FILE"):
            yield from self._paths.get_completions(Document(rest), complete_event)


class KeptHistory(FileHistory):
    """A history file that skips lines which cannot be written, or are not text."""

    def store_string(self, string: str) -> None:
        """Append a line to the history file if it can be written."""
        with suppress(OSError, ValueError):
            super().store_string(string)


def kept_history() -> History:
    """Return the lines of all sessions, in a file that only its owner may read; if there is none, of this one."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "ernie-export"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.close(os.open(folder / "chat-history", os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o600))
    except (OSError, RuntimeError):  # RuntimeError: no home
        return InMemoryHistory()
    return KeptHistory(folder / "chat-history")
