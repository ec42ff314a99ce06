"""Questions with known answers, asked on both sides: what a precision costs in answers."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_export.common.errors import UserError
from ernie_export.exporter.verify.torch_side import Reference
from ernie_export.runtime.pipeline import Model

LONGEST_ANSWER = 64  # tokens


@dataclass(frozen=True)
class Question:
    """One question: the answer that is right, and those given."""

    answer: str
    reference: str
    bundle: str


def read_questions(path: Path) -> list[dict[str, Any]]:
    """A JSON list of {"messages": [...], "answer": "..."}; UserError names the file, and the place of what is amiss.

    Media paths are taken as `ernie-run --messages` takes them: from the working directory.
    """
    try:
        questions = json.loads(path.read_bytes())
    except OSError as e:
        raise UserError(f"{path}: expected a file of questions, found: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: expected JSON, found {' '.join(str(e).split())}") from e
    if not isinstance(questions, list) or not questions:
        raise UserError(f"{path}: expected a list of questions, found {type(questions).__name__} of nothing to ask")
    for number, question in enumerate(questions):
        whole = isinstance(question, dict) and isinstance(question.get("answer"), str)
        if not whole or not isinstance(question.get("messages"), list):
            raise UserError(f"{path}: [{number}]: expected an object with messages and a text as answer")
    return questions


def ask_questions(
    reference: Reference, model: Model, questions: list[dict[str, Any]], progress: Callable[[str], None]
) -> list[Question]:
    """Greedy answers of both sides to each of `questions` (see `read_questions`)."""
    asked = []
    for number, question in enumerate(questions, 1):
        progress(f"question {number} of {len(questions)}")
        arrays = model.preprocess(question["messages"])
        expected = model.preprocessor.chat.decode(reference.answer(arrays, LONGEST_ANSWER))
        found = model.generate(question["messages"], max_new_tokens=LONGEST_ANSWER).text
        asked.append(Question(question["answer"], expected, found))
    return asked
