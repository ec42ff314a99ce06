"""Ask the small trained checkpoint about images and videos, and check its answers.

    python -m ernie_export.demo [BUNDLE]

Without BUNDLE the checkpoint is exported to a temporary folder first, which needs the extra `export`. The checkpoint,
the media and the questions come with the package (10 MiB). Exits with 1 if an answer is not the expected one.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ernie_export.common.command import run
from ernie_export.common.errors import Unavailable, printable

INSTALLED = Path(__file__).parent  # a wheel has the examples in the package, a clone beside it
ROOT = INSTALLED if (INSTALLED / "examples").is_dir() else INSTALLED.parent
EXAMPLES = ROOT / "examples"
LONGEST_ANSWER = 100  # tokens; a model that does not come to an end is wrong anyway


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option(
    "--questions",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    default=EXAMPLES / "questions.json",
    help="Conversations with their expected answers, as examples/questions.json has them.",
)
def command(bundle: Path | None, questions: Path) -> None:
    """Ask BUNDLE, an export of the small checkpoint, the demo's questions; without BUNDLE, export it first."""
    if bundle is not None:
        wrong = ask(bundle, str(bundle), questions)
    else:
        with tempfile.TemporaryDirectory(prefix="ernie-demo-") as folder:
            export_checkpoint(Path(folder) / "mini-ernie")
            wrong = ask(Path(folder) / "mini-ernie", "mini-ernie", questions)
    sys.exit(1 if wrong else 0)


def export_checkpoint(bundle: Path) -> None:
    """Export the small checkpoint to `bundle`. Raises Unavailable without the extra `export`."""
    try:
        from ernie_export.exporter.export import export
    except ModuleNotFoundError as e:
        raise Unavailable(f"the demo exports a checkpoint: install the extra 'export' (no module {e.name})") from e
    export(EXAMPLES / "mini-ernie", bundle)


def ask(bundle: Path, name: str, path: Path) -> int:
    """Ask all questions of the file `path`; return how many answers are wrong.

    Prints a table of the answers, titled by `name`.
    """
    from ernie_export.runtime.pipeline import load

    questions = json.loads(path.read_text())
    table = Table(title=f"{name} answers", title_justify="left")
    for column in ("about", "question", "answer", ""):
        table.add_column(column)
    wrong = 0
    with load(bundle) as model:
        for question in questions:
            messages = with_full_paths(question["messages"])
            answer = model.generate(messages, max_new_tokens=LONGEST_ANSWER).text
            right = answer == question["answer"]
            wrong += not right
            verdict = "right" if right else f"wrong: expected {question['answer']}"
            about, asked = described(question["messages"])
            cells = [Text(printable(text, keep="\n")) for text in ("\n".join(about), asked, answer, verdict)]
            table.add_row(*cells, style="" if right else "bold red")
    Console().print(table)
    return wrong


def with_full_paths(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with their media's paths completed, so that the demo runs in any folder."""
    return [
        message | {"content": [part | ({"path": str(ROOT / part["path"])} if "path" in part else {}) for part in parts]}
        for message in messages
        for parts in [message["content"]]
    ]


def described(messages: list[dict[str, Any]]) -> tuple[list[str], str]:
    """Return what a conversation's question is about, the file names of media and earlier texts, and the question."""
    parts = [part for message in messages for part in message["content"]]
    asked = max(index for index, part in enumerate(parts) if "text" in part)
    about = [Path(part["path"]).name if "path" in part else part["text"] for part in parts[:asked] + parts[asked + 1 :]]
    return about, parts[asked]["text"]


if __name__ == "__main__":
    run(command)
