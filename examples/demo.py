"""Ask a bundle of mini-ernie the questions of questions.json, and check its answers.

    python examples/demo.py [BUNDLE]

Prints a table; exits with 1 if an answer is not the expected one.
"""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ernie_export.common.command import user_errors
from ernie_export.runtime import load

QUESTIONS = Path(__file__).parent / "questions.json"
ROOT = QUESTIONS.parent.parent
BUNDLE = ROOT / "bundles" / "mini-ernie"
LONGEST_ANSWER = 32  # tokens; a model that does not come to an end is wrong anyway


def main(bundle: Path) -> int:
    """Ask everything; returns how many answers are wrong."""
    questions = json.loads(QUESTIONS.read_text())
    table = Table(title=f"{bundle} answers", title_justify="left")
    for column in ("about", "question", "answer", ""):
        table.add_column(column)
    wrong = 0
    with load(bundle) as model:
        for question in questions:
            answer = model.generate(placed(question["messages"]), max_new_tokens=LONGEST_ANSWER).text
            right = answer == question["answer"]
            wrong += not right
            verdict = "right" if right else f"wrong: expected {question['answer']}"
            *about, asked = described(question["messages"])
            table.add_row(*map(Text, ("\n".join(about), asked, answer, verdict)), style="" if right else "bold red")
    Console().print(table)
    return wrong


def placed(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the paths of their media taken from the repository's root, wherever this is run."""
    return [
        message | {"content": [part | ({"path": str(ROOT / part["path"])} if "path" in part else {}) for part in parts]}
        for message in messages
        for parts in [message["content"]]
    ]


def described(messages: list[dict[str, Any]]) -> list[str]:
    """One entry for each part of a conversation: file names of media, and text."""
    parts = [part for message in messages for part in message["content"]]
    return [Path(part["path"]).name if "path" in part else part["text"] for part in parts]


if __name__ == "__main__":
    with user_errors():
        sys.exit(1 if main(Path(sys.argv[1]) if len(sys.argv) > 1 else BUNDLE) else 0)
