"""The held-out questions are repeatable, answerable in one way, and cover what an export can break."""

import json
from collections import Counter
from random import Random

import conversations
import curriculum
import heldout
import mini_tools
import mini_unknown
import numpy as np
import pytest
import questions
import scenes
from conversations import media_parts
from mini_sayings import SYSTEMS
from mini_unseen import SYSTEMS_HELDOUT
from mini_words import ALSO_IN, FOLLOW_UPS, OF_IT
from picture_questions import about_picture

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
    tables = (questions.QUESTIONS, questions.ALONE, questions.ALONE_ONE, FOLLOW_UPS, OF_IT, {"also in": ALSO_IN})
    trained = {wording for table in tables for wordings in table.values() for wording in wordings}
    assert not trained & {wording for wordings in questions.HELDOUT.values() for wording in wordings}
    assert not set(SYSTEMS) & set(SYSTEMS_HELDOUT)


def test_each_kind_of_question_has_ten_wordings_or_more_and_two_unseen_ones():
    assert min(map(len, questions.QUESTIONS.values())) >= 10
    assert all(len(questions.HELDOUT[kind]) >= 2 for kind in questions.QUESTIONS)
    assert all(len(set(wordings)) == len(wordings) for wordings in questions.QUESTIONS.values())


def test_wordings_without_a_name_are_used_only_where_one_medium_was_shown_last():
    def bare(utterance: conversations.Utterance) -> bool:
        question = utterance.question
        tables = (questions.ALONE, questions.ALONE_ONE)
        own = {
            questions.fill_slots(form, question.slots) for table in tables for form in table.get(question.wording, ())
        }
        return utterance.text in own

    def found(pictures: int, videos: int) -> int:
        conversation = conversations.Conversation(Random(2))
        conversation.show(pictures, videos)
        asked = conversation.questions()
        return sum(bare(conversation.word(question)) for question in asked for _ in range(20))

    assert found(1, 0) and found(0, 1)
    assert not found(2, 0) and not found(1, 1)


def test_it_stands_for_the_only_thing_of_a_picture():
    one, two = (
        next(p for p in map(scenes.draw_picture, map(Random, range(200))) if len(p.things) == count) for count in (1, 2)
    )

    def texts(picture: scenes.Picture) -> set[str]:
        asked = [q for q in about_picture(Random(3), picture) if q.kind in ("colour", "shape", "where")]
        return {question.bare_text(Random(seed)) for question in asked for seed in range(30)}

    assert "Where is it?" in texts(one) and "Where is it?" not in texts(two)


def test_questions_carry_what_their_answers_are_about():
    for kind in ("colour", "where", "describe", "which", "mover", "when", "happens", "clip-colour"):
        for sample in heldout.undrawn(kind, 20):
            question = sample.question
            assert question.kind == kind and question.answer == sample.answer
            assert question.things or sample.answer == questions.NO_SHAPES
            if kind == "describe":
                assert sample.answer == (", ".join(thing.name for thing in question.things) or questions.NO_SHAPES)
            if kind == "which":
                assert question.things[0] in media_parts(sample, "image")[question.picture].things
            if kind == "when":
                assert sample.answer == f"at {question.moment} seconds"


def test_what_is_unknown_takes_many_forms_and_has_one_answer():
    rng = Random(6)
    texts = [mini_unknown.unknown_text(rng) for _ in range(2000)]
    assert len(set(texts)) > 1500 and all(texts)
    assert not any(
        slot in text for text in texts for slot in ("{noun}", "{name}", "{verb}", "{adjective}", "{word}", "{shape}")
    )
    assert any("example.com" in text for text in texts) and any(not text.isascii() for text in texts)
    for kind in ("unknown", "unseen-unknown"):
        assert {sample.answer for sample in heldout.undrawn(kind, 50)} == {mini_unknown.UNKNOWN_ANSWER}
    assert not set(mini_unknown.UNKNOWN) & set(mini_unknown.UNKNOWN_HELDOUT)
    assert not set(mini_unknown.SCRIPTS) & set(mini_unknown.SCRIPTS_HELDOUT)


def test_a_text_is_never_emptied_by_how_it_is_typed():
    rng = Random(7)
    assert all(conversations.vary(rng, text) for text in ("???", ".", "Why?") for _ in range(200))


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
        document = json.loads(sample.answer)
        things = document["shapes"] if isinstance(document, dict) else document
        (picture,) = media_parts(sample, "image")
        assert [(thing["shape"], thing["colour"]) for thing in things] == [
            (thing.shape, thing.colour) for thing in picture.things
        ]
        assert all(thing["place"] for thing in things)


def test_a_thought_stands_before_the_same_answer():
    for sample in heldout.undrawn("thinking", 20):
        thought, answer = sample.answer.split("</think>\n\n")
        assert sample.thinking and thought.startswith("\n") and thought.endswith("\n") and answer


def test_tool_calls_fit_the_tools_that_are_offered():
    rng = Random(4)
    forms = set()
    calls = 0
    for _ in range(100):
        for sample in curriculum.tool_conversation(rng, conversations.Source()):
            offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in sample.tools}
            forms |= set(offered)
            if sample.answer.startswith("<tool_call>"):
                call = json.loads(sample.answer.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>\n"))
                schema = offered[call["name"]]
                assert call["arguments"].keys() == schema["properties"].keys()
                integers = [isinstance(value, int) for value in call["arguments"].values()]
                assert integers == sorted(integers, reverse=True)  # the picture before the place
                for key, value in call["arguments"].items():
                    wanted = schema["properties"][key]
                    assert isinstance(value, int if wanted["type"] == "integer" else str)
                    assert value in wanted.get("enum", [value]) and value not in (0, "")
                assert set(schema.get("required", ())) <= set(call["arguments"])
                calls += 1
    assert calls > 100
    assert {"count_shapes", "zoom", "zoom_in", "count_objects"} <= forms


def test_tools_have_their_usual_names_in_one_kind_and_others_in_the_other():
    def names(kind: str) -> set[str]:
        functions = [tool["function"] for sample in heldout.undrawn(kind, 50) for tool in sample.tools]
        return {name for function in functions for name in (function["name"], *function["parameters"]["properties"])}

    unusual = {name for table in (mini_tools.NAMES, mini_tools.KEYS) for group in table.values() for name in group}
    assert not names("tools") & unusual and {"count_shapes", "zoom", "picture", "place"} <= names("tools")
    assert len(names("renamed-tools") & unusual) > 10


def test_results_of_tools_are_answered_in_a_word():
    rng = Random(9)
    results = set()
    for _ in range(100):
        for sample in curriculum.tool_conversation(rng, conversations.Source()):
            if sample.messages[-1]["role"] == "tool":
                results.add(sample.messages[-1]["content"])
                assert sample.messages[-2]["tool_calls"] and sample.answer in (*questions.NUMBERS, "done")
    assert {"3", "three", '{"count": 3}', "ok", '{"ok": true}'} <= results


def test_conversations_to_train_on_have_one_to_eight_turns_in_every_order():
    rng = Random(5)
    drawn = [curriculum.converse(rng, conversations.Source()) for _ in range(100)]
    turns = {sum(turn["role"] == "user" for turn in samples[-1].messages) for samples in drawn}
    assert turns == {1, 2, 3, 5, 8}
    assert any(samples[0].messages[0]["role"] == "system" for samples in drawn)
