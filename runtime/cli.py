"""ernie-run: ask a bundle a question about text, pictures and clips."""

import json
import sys
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from ernie_export.graphs.errors import UserError
from ernie_export.runtime.command import run

if TYPE_CHECKING:
    from ernie_export.runtime.pipeline import Model, Result

Messages = list[dict[str, Any]]
ORDER = "ernie_export.media_order"  # in a context's meta: "image" and "video" as they follow on the command line


class MediaInOrder(click.Command):
    """Remembers how --image and --video alternate: click itself keeps the order only within each."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, after noting the order of the media options."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[ORDER] = [parameter.name for parameter in order if parameter.name in ("image", "video")]
        return super().parse_args(ctx, args)


def load(bundle: Path, device: str, kv_cache: float) -> "Model":
    """Load a bundle. The pipeline, and with it ONNX Runtime, is imported only here, so that --help comes at once."""
    from ernie_export.runtime import load as load_bundle
    from ernie_export.runtime.scheduler import Limits

    return load_bundle(bundle, device=device, limits=Limits(kv_bytes=int(kv_cache * 2**30)))


@click.command(cls=MediaInOrder, context_settings={"show_default": True, "max_content_width": 110})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("question", required=False)
@click.option("--image", multiple=True, metavar="PATH", help="A picture to ask about. May be repeated.")
@click.option("--video", multiple=True, metavar="PATH", help="A clip to ask about. May be repeated.")
@click.option(
    "--messages",
    "messages_file",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="A conversation (a list of messages), or a list of conversations, in place of QUESTION.",
)
@click.option("--max-new-tokens", type=int, default=128, help="Longest answer.")
@click.option("--min-new-tokens", type=int, default=0, help="Shortest answer.")
@click.option("--temperature", type=float, default=0.0, help="Above 0: sample; 0: the likeliest token each time.")
@click.option("--top-k", type=int, default=0, help="Sample among the K likeliest tokens; 0: all.")
@click.option("--top-p", type=float, default=1.0, help="Sample among the likeliest tokens that make up this share.")
@click.option("--repetition-penalty", type=float, default=1.0, help="Above 1: avoid tokens that have occurred.")
@click.option("--seed", type=int, default=None, help="Equal seeds sample equal answers.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text. May be repeated.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="cuda: the first NVIDIA GPU.")
@click.option("--kv-cache", type=float, default=4.0, metavar="GIB", help="Most memory for keys and values.")
@click.option("--json", "as_json", is_flag=True, help="Print text, tokens, prompt_tokens and finish_reason as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    bundle: Path,
    question: str | None,
    image: tuple[str, ...],
    video: tuple[str, ...],
    messages_file: Path | None,
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
    if messages_file is None:
        conversations: list[Messages] | Messages = _ask(question, image, video, ctx.meta[ORDER])
    elif question is not None or image or video:
        raise UserError("--messages: expected it alone, found a QUESTION, --image or --video as well")
    else:
        conversations = _read_messages(messages_file)
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
    try:
        question.encode()
    except UnicodeEncodeError as e:  # bytes of the command line that are not text come in as lone surrogates
        raise UserError(f"QUESTION: expected text in UTF-8, found {question!a}") from e
    paths = {"image": iter(images), "video": iter(videos)}
    media = [{"type": kind, "path": next(paths[kind])} for kind in order]
    return [{"role": "user", "content": [*media, {"type": "text", "text": question}]}]


def _read_messages(path: Path) -> list[Messages] | Messages:
    """One conversation or several from a JSON file; what a message may hold is for the preprocessor to check."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as e:
        raise UserError(f"{path}: expected a file of messages, found {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: expected JSON, found {e}") from e
    if not isinstance(document, list):
        raise UserError(f"{path}: expected a list of messages or of conversations, found {type(document).__name__}")
    if not document or [] in document:
        raise UserError(f"{path}: expected at least one message in a conversation, found none")
    kinds = sorted({type(entry).__name__ for entry in document})
    if kinds not in (["dict"], ["list"]):
        raise UserError(
            f"{path}: expected a list of messages or of conversations, found a list of {' and '.join(kinds)}"
        )
    return document


def _stream(pieces: Generator[str, None, "Result"]) -> None:
    """Print pieces as they come, and then, if stderr is a terminal, figures to it."""
    began = time.perf_counter()
    first = 0.0
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            result = end.value
            break
        if piece:
            first = first or time.perf_counter() - began
            print(piece, end="", flush=True)
    print(flush=True)
    if sys.stderr.isatty():
        seconds, tokens = time.perf_counter() - began, len(result.tokens)
        print(
            f"{result.prompt_tokens} prompt tokens, first text after {first:.2f} s; {tokens} tokens in {seconds:.2f} s "
            f"({tokens / seconds:.1f} tokens/s); finish reason: {result.finish_reason}",
            file=sys.stderr,
        )


def _as_json(results: "Result | list[Result]") -> str:
    """An object, or a list of objects, on one line; in ASCII where the output's encoding is not UTF-8."""
    document = [asdict(result) for result in results] if isinstance(results, list) else asdict(results)
    return json.dumps(document, ensure_ascii=(sys.stdout.encoding or "ascii").lower() != "utf-8")
