"""`strangers.json` is what people type into the page at first: three sets, written without sight of the training.

Each entry is the media of its first turn, what the user says turn by turn, and forms of the right answer to the last
turn; null where many answers would do. Accuracy on held-out questions says how well the mini checkpoint knows what it
was trained on; this says what a visitor meets.
"""

import json
import re

import pytest

from ernie_export.exporter.export import export
from ernie_export.runtime import load
from tests.paths import MEDIA, MINI, ROOT
from tests.progress import QUIET

TALKS = json.loads((ROOT / "tests/runtime/strangers.json").read_text())


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The answers to all turns of every talk, each after the model's own answers before it."""
    bundle = tmp_path_factory.mktemp("talk") / "bundle"
    export(MINI, bundle, "onnx", "fp32", QUIET)
    with load(bundle) as model:
        yield [talk_with(model, talk) for talk in TALKS]


def talk_with(model, talk):
    kinds = {".mp4": "video"}
    parts = [{"type": kinds.get(name[-4:], "image"), "path": str(MEDIA / name)} for name in talk["media"]]
    messages, found = [], []
    for text in talk["turns"]:
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": text}]})
        answer = model.generate(messages, max_new_tokens=160)
        assert answer.finish_reason == "stop", (talk, answer.text)
        messages.append({"role": "assistant", "content": answer.text})
        found.append(answer.text)
        parts = []
    return found


def said(text):
    """What an answer names, in any order, without articles and prepositions."""
    text = re.sub(r"^(i see|it is|there is|there are) ", "", text.lower().strip().rstrip("."))
    return sorted(re.sub(r"^((in|at|on|the|an?) )+", "", part.strip()) for part in re.split(r",|\band\b", text))


def test_no_answer_is_empty_or_noise(answers):
    """Words of one letter and words that repeat are what an untrained prompt draws."""
    for talk, found in zip(TALKS, answers, strict=True):
        for answer in found:
            assert re.fullmatch(r"[\w\s,.'\"\[\]{}:<>/;!?()-]+", answer) and re.search(r"[A-Za-z]{2}", answer), (
                talk,
                answer,
            )
            assert not re.search(r"\b(\w+)( \1\b){2}", answer), (talk, answer)


def test_most_answers_are_right(answers):
    judged = [(talk, found[-1]) for talk, found in zip(TALKS, answers, strict=True) if talk["right"] is not None]
    wrong = [(talk["turns"], answer) for talk, answer in judged if said(answer) not in map(said, talk["right"])]
    assert len(judged) == 314
    assert len(judged) - len(wrong) >= 250, wrong


def test_json_is_json_where_it_is_asked_for(answers):
    asked = [found[-1] for talk, found in zip(TALKS, answers, strict=True) if "json" in talk["turns"][-1].lower()]
    assert len(asked) == 9
    for answer in asked:
        json.loads(answer)
