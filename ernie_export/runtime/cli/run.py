"""ernie-run: ask a bundle a question about text, pictures and clips."""

import json
import sys
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ernie_export.common.command import check_text, run
from ernie_export.common.errors import UserError, printable
from ernie_export.runtime import messages_file
from ernie_export.runtime.cli.options import answer_options, load
from ernie_export.runtime.figures import Figures
from ernie_export.runtime.messages_file import Messages

if TYPE_CHECKING:
    from ernie_export.runtime.pipeline import Result

ORDER = "ernie_export.media_order"  # in a context's meta: "image" and "video" as they follow on the command line


class MediaInOrder(click.Command):
    """Remembers how --image and --video alternate: click itself keeps the order only within each."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, after noting the order of the media options."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[ORDER] = [parameter.name for parameter in order if parameter.name in ("image", "video")]
        return super().parse_args(ctx, args)


@click.command(cls=MediaInOrder, context_settings={"show_default": True, "max_content_width": 110})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("question", required=False)
@click.option("--image", multiple=True, metavar="PATH", help="A picture to ask about. May be repeated.")
@click.option("--video", multiple=True, metavar="PATH", help="A clip to ask about. May be repeated.")
@click.option(
    "--messages",
    "conversation_file",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="A conversation (a list of messages), or a list of conversations, in place of QUESTION.",
)
@answer_options
@click.option("--json", "as_json", is_flag=True, help="Print the answer, its tokens and their counts as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    bundle: Path,
    question: str | None,
    image: tuple[str, ...],
    video: tuple[str, ...],
    conversation_file: Path | None,
    device: str,
    kv_cache: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask the model in the folder BUNDLE a QUESTION and print its answer as it comes.

    Pictures and clips stand before the question, in the order given here. In a file of messages they stand where the
    file has them: {"role": "user", "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What
    is it?"}]}. Relative paths start from the current folder, in a file of messages too.
    """
    from ernie_export.runtime.sampling import SamplingParams

    params = asdict(SamplingParams(**options))  # refuses a bad option before anything is loaded
    if conversation_file is None:
        conversations: list[Messages] | Messages = _ask(question, image, video, ctx.meta[ORDER])
    elif question is not None or image or video:
        raise UserError("--messages: expected it alone, found a QUESTION, --image or --video as well")
    else:
        conversations = messages_file.read(conversation_file)
    with load(bundle, device, kv_cache) as model:
        if not as_json and isinstance(conversations[0], dict):
            _stream(model.stream(cast(Messages, conversations), **params))
            return
        answer = model.generate(conversations, **params)
    if as_json:
        print(_as_json(answer))
    elif isinstance(answer, list):
        for number, result in enumerate(answer, start=1):
            print(f"[{number}] {result.text}")


def main() -> None:
    """Entry point of `ernie-run`."""
    run(command)


def _ask(question: str | None, images: tuple[str, ...], videos: tuple[str, ...], order: list[str]) -> Messages:
    """One user message: media in the order of the command line, then the question."""
    if question is None:
        raise UserError("QUESTION: expected a question, or a conversation with --messages, found neither")
    check_text(question, "QUESTION")
    paths = {"image": iter(images), "video": iter(videos)}
    media = [{"type": kind, "path": next(paths[kind])} for kind in order]
    return [{"role": "user", "content": [*media, {"type": "text", "text": question}]}]


def _stream(pieces: Generator[str, None, "Result"]) -> None:
    """Print pieces as they come, and then, if stderr is a terminal, figures to it."""
    began = time.perf_counter()
    first = 0.0
    terminal = sys.stdout.isatty()  # it would execute control characters that an answer holds
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            result = end.value
            break
        first = first or time.perf_counter() - began
        if piece:
            print(printable(piece, keep="\n\t") if terminal else piece, end="", flush=True)
    print(flush=True)
    if sys.stderr.isatty():
        seconds, prompt = time.perf_counter() - began, (result.prompt_tokens, result.reused_tokens)
        print(Figures(*prompt, len(result.tokens), first, seconds, result.finish_reason), file=sys.stderr)


def _as_json(results: "Result | list[Result]") -> str:
    """An object, or a list of objects, on one line; in ASCII where the output's encoding is not UTF-8."""
    document = [asdict(result) for result in results] if isinstance(results, list) else asdict(results)
    return json.dumps(document, ensure_ascii=(sys.stdout.encoding or "ascii").lower() != "utf-8")
