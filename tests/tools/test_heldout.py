"""The held-out questions are repeatable, answerable in one way, and cover what an export can break."""

import json
from collections import Counter
from random import Random

import conversations
import curriculum
import heldout
import numpy as np
import pytest
import questions
import scenes
from conversations import media_parts

# Kinds that have one answer, or one each for a few questions.
CONSTANT = ("unknown", "unseen-unknown", "missing")


def same(left: conversations.Sample, right: conversations.Sample) -> bool:
    def flat(sample: conversations.Sample) -> list[np.ndarray]:
        return [
            np.asarray(medium) if not isinstance(medium, scenes.Clip) else medium.frames
            for medium in media_parts(sample, "image", "video")
        ]

    media = zip(flat(left), flat(right), strict=True)
    return left.answer == right.answer and all(np.array_equal(a, b) for a, b in media)


@pytest.mark.parametrize("kind", heldout.KINDS)
def test_heldout_questions_repeat_and_differ_by_seed(kind):
    first, again = (list(heldout.heldout(kind, 4)) for _ in range(2))
    assert all(sample.kind == kind for sample in first)
    assert all(map(same, first, again))
    assert list(heldout.undrawn(kind, 4)) == list(heldout.undrawn(kind, 4)) != list(heldout.undrawn(kind, 4, seed=1))


@pytest.mark.parametrize("kind", [kind for kind in heldout.KINDS if kind not in CONSTANT])
def test_no_answer_can_be_guessed_from_the_kind_alone(kind):
    answers = Counter(sample.answer for sample in heldout.undrawn(kind, 100))
    assert answers.most_common(1)[0][1] <= 65, answers


def test_unseen_wordings_are_not_among_the_trained_ones():
    trained = {wording for wordings in questions.QUESTIONS.values() for wording in wordings}
    assert not trained & {wording for wordings in questions.HELDOUT.values() for wording in wordings}


def test_each_kind_of_question_has_five_wordings_or_more():
    assert min(map(len, questions.QUESTIONS.values())) >= 5


def test_orders_put_the_text_where_they_say():
    media = [{"type": "image"}, {"type": "image"}]

    def kinds(order) -> list[str]:
        return [part["type"] for part in order(Random(0), media, "What?")]

    assert kinds(conversations.media_first) == ["image", "image", "text"]
    assert kinds(conversations.text_first) == ["text", "image", "image"]
    assert kinds(conversations.between) == ["image", "text", "image"]
    assert kinds(conversations.several_texts) == ["text", "image", "image", "text"]


def test_questions_about_one_of_several_pictures_name_it():
    for sample in heldout.undrawn("other", 50):
        text = sample.messages[-1]["content"][-1]["text"]
        assert any(
            name in text for name in ("picture 1", "picture 2", "first picture", "second picture", "last picture")
        )


def test_json_answers_parse_and_list_every_shape():
    for sample in heldout.undrawn("json", 20):
        things = json.loads(sample.answer)
        (picture,) = media_parts(sample, "image")
        assert [(thing["shape"], thing["colour"]) for thing in things] == [
            (thing.shape, thing.colour) for thing in picture.things
        ]
        assert all(thing["place"] for thing in things)


def test_a_thought_stands_before_the_same_answer():
    for sample in heldout.undrawn("thinking", 20):
        thought, answer = sample.answer.split("</think>\n\n")
        assert sample.thinking and thought.startswith("\n") and thought.endswith("\n") and answer


def test_tool_calls_are_made_for_offered_tools_only():
    rng = Random(4)
    calls = 0
    for _ in range(30):
        for sample in curriculum.tool_conversation(rng, conversations.Source()):
            names = [tool["function"]["name"] for tool in sample.tools]
            if sample.answer.startswith("<tool_call>"):
                call = json.loads(sample.answer.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>\n"))
                assert call["name"] in names and call["arguments"]["picture"] >= 1
                calls += 1
            assert names
    assert calls > 20


def test_conversations_to_train_on_have_one_to_five_turns_in_every_order():
    rng = Random(5)
    drawn = [curriculum.converse(rng, conversations.Source()) for _ in range(100)]
    turns = {sum(turn["role"] == "user" for turn in samples[-1].messages) for samples in drawn}
    assert turns == {1, 2, 3, 5}
    assert any(samples[0].messages[0]["role"] == "system" for samples in drawn)
