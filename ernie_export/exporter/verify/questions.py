"""Questions with known answers, asked on both sides: what a precision costs in answers."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_export.common.errors import InvalidFile
from ernie_export.common.json_fields import one_line
from ernie_export.exporter.verify.torch_side import Reference
from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.preprocess import Preprocessor

LONGEST_ANSWER = 64  # tokens


@dataclass(frozen=True)
class Question:
    """One question: the expected answer, and those of both sides."""

    answer: str
    reference: str
    bundle: str


def read_questions(path: Path) -> list[dict[str, Any]]:
    """Read a JSON list of {"messages": [...], "answer": "..."}; raise InvalidFile if it is not one.

    Media paths are taken as `ernie-run --messages` takes them: from the working directory.
    """
    try:
        questions = json.loads(path.read_bytes())
    except OSError as e:
        raise InvalidFile(path, "a file of questions", e.strerror) from e
    except (ValueError, RecursionError) as e:
        raise InvalidFile(path, "JSON", " ".join(str(e).split())) from e
    if not isinstance(questions, list) or not questions:
        found = "an empty list" if questions == [] else type(questions).__name__
        raise InvalidFile(path, "a list of questions", found)
    for number, question in enumerate(questions):
        has_answer = isinstance(question, dict) and isinstance(question.get("answer"), str)
        if not has_answer or not isinstance(question.get("messages"), list):
            expected = 'an object with a list "messages" and a text "answer"'
            raise InvalidFile(path, expected, one_line(question), key=f"[{number}]")
    return questions


def ask_bundle(model: Model, questions: list[dict[str, Any]], progress: Callable[[str], None]) -> list[str]:
    """Return a bundle's greedy answers to each of `questions` (see `read_questions`)."""
    answers = []
    for number, question in enumerate(questions, 1):
        progress(f"question {number} of {len(questions)}")
        answers.append(model.generate(question["messages"], max_new_tokens=LONGEST_ANSWER).text)
    return answers


def ask_reference(
    reference: Reference, preprocessor: Preprocessor, questions: list[dict[str, Any]], progress: Callable[[str], None]
) -> list[str]:
    """Return the reference's greedy answers to each of `questions` (see `read_questions`)."""
    answers = []
    for number, question in enumerate(questions, 1):
        progress(f"question {number} of {len(questions)}, in PyTorch")
        arrays = preprocessor.prepare(question["messages"]).arrays
        answers.append(preprocessor.chat.decode(reference.answer(arrays, LONGEST_ANSWER)))
    return answers
