"""ernie-chat: talk with a bundle about text, images and videos."""

import io
import os
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click

from ernie_export.common.command import print_error, run
from ernie_export.common.errors import InvalidValue, UserError, printable, text_for
from ernie_export.runtime.chat.chat import Chat
from ernie_export.runtime.cli.options import AnswerOptions, click_options, load

# Command: its argument, and what it does.
COMMANDS = {
    "/image": ("PATH", "attach an image to the next question"),
    "/video": ("PATH", "attach a video to the next question"),
    "/system": ("[TEXT]", "answer by this system prompt from now on; without TEXT, by none"),
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
@click_options(AnswerOptions)
def command(bundle: Path, conversation: Path | None, options: AnswerOptions) -> None:
    """Talk with the model in the folder BUNDLE.

    Every line is a question, or a command: /help lists them. Ctrl-C stops an answer, Ctrl-D leaves. Lines may come from
    a pipe, too; the exit code is then 2 if one of them failed.
    """
    params = options.sampling_params()  # refuses a bad option before anything is loaded
    with load(bundle, options) as model:
        threading.Thread(target=model.scheduler.run, name="scheduler", daemon=True).start()  # until the model closes
        from ernie_export.runtime.preprocess.chat import chat_variables

        chat = Chat(model, options.fit_length(params, model), chat_variables(options.thinking), options.system)
        if conversation is not None:
            chat.resume(conversation)
        print_status(f"{bundle} ({model.manifest.target}, {model.manifest.precision}): a question, or /help")
        succeeded = [process_line(chat, line) for line in until_quit(read_lines())]
    if not (at_terminal() or all(succeeded)):
        sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ernie-chat on `arguments`, by default those of this process, and exit."""
    run(command, arguments)


def at_terminal() -> bool:
    """Return whether somebody types lines and reads the answers."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def read_lines() -> Iterator[str]:
    """Return the lines that are typed, or that come through a pipe."""
    if at_terminal():
        from ernie_export.runtime.chat import terminal

        return terminal.read_lines(COMMANDS)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # paths may be any bytes; a question is checked to be text
    return iter(sys.stdin)


def until_quit(lines: Iterator[str]) -> Iterator[str]:
    """Yield the lines that are not empty, stripped, up to the end or /quit."""
    for line in lines:
        if (text := line.strip()) == "/quit":
            return
        if text:
            yield text


def process_line(chat: Chat, line: str) -> bool:
    """Run a command or answer a question. Return False after an error, which is printed as one line on stderr."""
    try:
        if line.startswith("/"):
            run_command(chat, line)
        else:
            answer_question(chat, line)
    except UserError as e:
        print_error(str(e))
        return False
    except KeyboardInterrupt:
        print(flush=True)
        print_status("stopped")
    return True


def run_command(chat: Chat, line: str) -> None:
    """Run a command of COMMANDS. Raises InvalidValue for an unknown one, or a missing or superfluous argument."""
    name, *arguments = line.split(maxsplit=1)
    if name not in COMMANDS:
        raise InvalidValue(name, f"one of {' '.join(COMMANDS)}", "another command")
    metavar = COMMANDS[name][0]
    if bool(arguments) != bool(metavar) and not metavar.startswith("["):
        raise InvalidValue(name, f"{metavar or 'nothing'} after it", arguments[0] if arguments else "nothing")
    if name in ("/image", "/video"):
        print_status(chat.attach(name[1:], parse_source(arguments[0])))
    elif name == "/system":
        chat.set_system(arguments[0] if arguments else None)
        print_status("another system prompt" if arguments else "no system prompt")
    elif name == "/save":
        chat.save(parse_path(arguments[0]))
        print_status(f"{arguments[0]}: written")
    elif name == "/reset":
        chat.reset()
        print_status("a new conversation")
    else:
        print_help()


def print_help() -> None:
    """Print the commands, one a line."""
    for name, (metavar, text) in COMMANDS.items():
        print(f"{f'{name} {metavar}':<14}{text}", flush=True)


def parse_source(text: str) -> str | Path:
    """Return an address, a data URI or base64 as it is, anything else as a path."""
    from ernie_export.runtime.preprocess.messages import is_address

    return text if is_address(text) else parse_path(text)


def parse_path(text: str) -> Path:
    """Return a path as it was typed, spaces included, or else as a shell reads it, or that of a file: address.

    Terminals quote the path of a file that is dropped on them.
    """
    if text[:5].lower() == "file:":
        return Path(unquote(urlsplit(text).path))
    path = Path(os.path.expanduser(text))
    try:
        words = shlex.split(text)
        return path if len(words) != 1 or path.exists() else Path(os.path.expanduser(words[0]))
    except (OSError, ValueError):  # an apostrophe is no quotation for a shell, but may be part of a name
        return path


def answer_question(chat: Chat, question: str) -> None:
    """Print an answer as it comes, and then its statistics."""
    thinking = False

    def on_text(piece: str) -> None:
        nonlocal thinking
        if thinking and piece:
            thinking = False
            print(flush=True)
        print(text_for(sys.stdout, piece), end="", flush=True)

    def on_thought(piece: str) -> None:
        nonlocal thinking
        if at_terminal():  # a pipe gets only answers
            thinking = True
            click.secho(text_for(sys.stdout, piece), dim=True, nl=False)

    stats = chat.ask(question, on_text, on_thought)
    print(flush=True)
    print_status(str(stats))


def print_status(text: str) -> None:
    """Print what is no answer, at a terminal alone: a pipe gets only answers, and errors on stderr."""
    stream = sys.stdout if at_terminal() else sys.stderr
    if stream.isatty():
        click.secho(printable(text), dim=True, file=stream)
