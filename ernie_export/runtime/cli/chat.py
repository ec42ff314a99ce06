"""ernie-chat: talk with a bundle about text, pictures and clips."""

import io
import os
import shlex
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ernie_export.common.command import print_error, run
from ernie_export.common.errors import UserError, printable
from ernie_export.runtime.chat.chat import Chat
from ernie_export.runtime.cli.options import answer_options, load

# Command: what follows it, and what it does.
COMMANDS = {
    "/image": ("PATH", "attach a picture to the next question"),
    "/video": ("PATH", "attach a clip to the next question"),
    "/reset": ("", "forget the conversation and what is attached"),
    "/save": ("FILE", "write the conversation for --messages of ernie-chat and ernie-run"),
    "/help": ("", "this list"),
    "/quit": ("", "leave, as Ctrl-D does"),
}


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--messages",
    "conversation",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Go on with a conversation that /save has written.",
)
@answer_options
def command(bundle: Path, conversation: Path | None, device: str, kv_cache: float, **options: Any) -> None:
    """Talk with the model in the folder BUNDLE.

    Every line is a question, or a command: /help lists them. Ctrl-C stops an answer, Ctrl-D leaves. Lines may come from
    a pipe, too; the exit code is then 2 if one of them could not be served.
    """
    from ernie_export.runtime.sampling import SamplingParams

    params = asdict(SamplingParams(**options))  # refuses a bad option before anything is loaded
    with load(bundle, device, kv_cache) as model:
        threading.Thread(target=model.scheduler.run, name="scheduler", daemon=True).start()  # until the model closes
        chat = Chat(model, params)
        if conversation is not None:
            chat.resume(conversation)
        note(f"{bundle} ({model.manifest.target}, {model.manifest.precision}): a question, or /help")
        served = [serve(chat, line) for line in until_quit(lines())]
    if not (at_terminal() or all(served)):
        sys.exit(2)


def main() -> None:
    """Entry point of `ernie-chat`."""
    run(command)


def at_terminal() -> bool:
    """Whether somebody types lines and reads the answers."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def lines() -> Iterator[str]:
    """What is typed, or what comes through a pipe."""
    if at_terminal():
        from ernie_export.runtime.chat import terminal as chat_terminal

        return chat_terminal.lines(COMMANDS)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # paths may be any bytes; a question is checked to be text
    return iter(sys.stdin)


def until_quit(lines: Iterator[str]) -> Iterator[str]:
    """Lines that are not empty, without the space around them, up to the end or /quit."""
    for line in lines:
        if (text := line.strip()) == "/quit":
            return
        if text:
            yield text


def serve(chat: Chat, line: str) -> bool:
    """Answer one line. What is wrong with it is one line on stderr, and False."""
    try:
        if line.startswith("/"):
            obey(chat, line)
        else:
            answer(chat, line)
    except UserError as e:
        print_error(str(e))
        return False
    except KeyboardInterrupt:
        print(flush=True)
        note("stopped")
    return True


def obey(chat: Chat, line: str) -> None:
    """Carry out a command. Raises UserError for one that is not there, or with what it does not take."""
    name, *rest = line.split(maxsplit=1)
    if name not in COMMANDS:
        raise UserError(f"{name}: expected one of {' '.join(COMMANDS)}")
    wanted = COMMANDS[name][0]
    if bool(rest) != bool(wanted):
        raise UserError(f"{name}: expected {wanted or 'nothing'} after it, found {rest[0] if rest else 'nothing'}")
    if name in ("/image", "/video"):
        note(chat.attach(name[1:], path_of(rest[0])))
    elif name == "/save":
        chat.save(path_of(rest[0]))
        note(f"{rest[0]}: written")
    elif name == "/reset":
        chat.reset()
        note("a new conversation")
    else:
        for other, (wanted, text) in COMMANDS.items():
            print(f"{f'{other} {wanted}':<14}{text}")


def path_of(text: str) -> Path:
    """A path as it was typed, spaces and all, or else as a shell reads it: terminals quote a file dropped on them."""
    path = Path(os.path.expanduser(text))
    try:
        words = shlex.split(text)
        return path if len(words) != 1 or path.exists() else Path(os.path.expanduser(words[0]))
    except (OSError, ValueError):  # an apostrophe, say: not for a shell, but it may name a file
        return path


def answer(chat: Chat, question: str) -> None:
    """Print an answer as it comes, and then its figures."""

    def show(piece: str) -> None:
        print(printable(piece, keep="\n\t") if sys.stdout.isatty() else piece, end="", flush=True)

    figures = chat.ask(question, show)
    print(flush=True)
    note(str(figures))


def note(text: str) -> None:
    """What is no answer, for a reader at a terminal alone: a pipe gets nothing but answers, and errors on stderr."""
    stream = sys.stdout if at_terminal() else sys.stderr
    if stream.isatty():
        click.secho(printable(text), dim=True, file=stream)
