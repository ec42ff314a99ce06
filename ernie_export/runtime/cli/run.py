"""ernie-run: ask a bundle a question about text, images and videos."""

import json
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from ernie_export.common.command import run
from ernie_export.common.errors import InvalidValue, text_for
from ernie_export.runtime import messages_file
from ernie_export.runtime.answer_stats import AnswerStats
from ernie_export.runtime.cli.options import AnswerOptions, click_options, load
from ernie_export.runtime.messages_file import Messages, check_text, is_one_conversation, is_text, with_system

if TYPE_CHECKING:
    from ernie_export.runtime.pipeline import Model
    from ernie_export.runtime.result import Result

Load = Callable[[Path, AnswerOptions, bool], "Model"]
ORDER = "ernie_export.media_order"  # in a context's meta: "image" and "video" as they follow on the command line


class MediaInOrder(click.Command):
    """A command that keeps the order in which --image and --video alternate; click keeps it only within each."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, after recording the order of the media options."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[ORDER] = [parameter.name for parameter in order if parameter.name in ("image", "video")]
        return super().parse_args(ctx, args)


@click.command(cls=MediaInOrder, context_settings={"show_default": True, "max_content_width": 110})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("question", required=False)
@click.option("--image", multiple=True, metavar="PATH", help="An image to ask about. May be repeated.")
@click.option("--video", multiple=True, metavar="PATH", help="A video to ask about. May be repeated.")
@click.option(
    "--messages",
    "conversation_file",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="A conversation (a list of messages), or a list of conversations, in place of QUESTION.",
)
@click_options(AnswerOptions)
@click.option("--json", "as_json", is_flag=True, help="Print the answer, its tokens and their counts as JSON.")
@click.pass_context
def command(
    context: click.Context,
    /,
    bundle: Path,
    question: str | None,
    image: tuple[str, ...],
    video: tuple[str, ...],
    conversation_file: Path | None,
    options: AnswerOptions,
    as_json: bool,
) -> None:
    """Ask the model in the folder BUNDLE a QUESTION and print its answer as it comes.

    Images and videos stand before the question, in the order given here. In a file of messages they stand where the
    file has them: {"role": "user", "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What
    is it?"}]}. Relative paths start from the current folder, in a file of messages too.
    """
    params = options.sampling_params()  # refuses a bad option before anything is loaded
    if conversation_file is None:
        conversations: list[Messages] | Messages = user_message(question, image, video, context.meta[ORDER])
    elif question is not None or image or video:
        raise click.UsageError("--messages cannot be combined with QUESTION, --image or --video")
    else:
        conversations = messages_file.read(conversation_file)
    if options.system is not None:
        conversations = with_system_prompt(conversations, options.system)
    load_model: Load = context.obj
    with load_model(bundle, options, not is_text(conversations)) as model:
        asked = {"enable_thinking": options.thinking} | vars(options.fit_length(params, model))
        if not as_json and is_one_conversation(conversations):
            print_stream(model.stream(conversations, **asked))
            return
        answer = model.generate(conversations, **asked)
    if as_json:
        print_json([asdict(result) for result in answer] if isinstance(answer, list) else asdict(answer))
    elif isinstance(answer, list):
        for number, result in enumerate(answer, start=1):
            print(f"[{number}] {text_for(sys.stdout, result.text)}")


def main(arguments: Sequence[str] | None = None, load_model: Load = load) -> None:
    """Run ernie-run on `arguments`, by default those of this process, and exit. `load_model` loads the bundle."""
    run(command, arguments, context_object=load_model)


def user_message(question: str | None, images: tuple[str, ...], videos: tuple[str, ...], order: list[str]) -> Messages:
    """Return a conversation of one user message: media in the order of the command line, then the question.

    Args:
        question: The text; None where the command line has none.
        images: Paths of --image.
        videos: Paths of --video.
        order: "image" or "video" for each of these options, as they follow on the command line.

    Raises:
        InvalidValue: There is no question, or it is not text.
    """
    if question is None:
        raise InvalidValue("QUESTION", "a question, or a conversation with --messages", "neither")
    check_text(question, "QUESTION")
    paths = {"image": iter(images), "video": iter(videos)}
    media = [{"type": kind, "path": next(paths[kind])} for kind in order]
    return [{"role": "user", "content": [*media, {"type": "text", "text": question}]}]


def with_system_prompt(document: list[Messages] | Messages, system: str) -> list[Messages] | Messages:
    """Return one conversation or several, each beginning with a system prompt in place of its own."""
    if is_one_conversation(document):
        return with_system(document, system)
    return [with_system(conversation, system) for conversation in cast(list[Messages], document)]


def print_stream(pieces: Generator[str, None, "Result"]) -> None:
    """Print pieces of an answer as they come, and then its statistics to stderr if that is a terminal."""
    began = time.perf_counter()
    first_token_seconds = 0.0
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            result: Result = end.value
            break
        first_token_seconds = first_token_seconds or time.perf_counter() - began
        if piece:
            print(text_for(sys.stdout, piece), end="", flush=True)
    print(flush=True)
    if sys.stderr.isatty():
        stats = AnswerStats(
            prompt_tokens=result.prompt_tokens,
            reused_tokens=result.reused_tokens,
            tokens=len(result.tokens),
            first_token_seconds=first_token_seconds,
            seconds=time.perf_counter() - began,
            finish_reason=result.finish_reason,
        )
        print(stats, file=sys.stderr)


def print_json(document: object) -> None:
    """Print JSON on one line; in ASCII where the encoding of stdout is not UTF-8.

    JSON escapes the control characters of ASCII. Those of Unicode, which a terminal executes as well, are escaped here.
    """
    text = json.dumps(document, ensure_ascii=(sys.stdout.encoding or "ascii").lower() != "utf-8")
    print("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text))
