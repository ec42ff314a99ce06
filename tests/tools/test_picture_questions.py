"""Answers to questions about a picture are what its things say, counted anew here from their attributes."""

from collections import Counter
from dataclasses import replace
from random import Random

import conversations
import pytest
import questions
import scenes
from mini_grounds import Texture
from picture_questions import about_picture

PICTURES = [scenes.draw_picture(Random(seed)) for seed in range(300)]
ASKED = [question for seed, picture in enumerate(PICTURES) for question in about_picture(Random(seed), picture)]


def of_kind(kind: str) -> list[questions.Question]:
    found = [question for question in ASKED if question.kind == kind]
    assert len(found) > 100
    return found


def listed(names: list[str], nothing: str) -> str:
    return ", ".join(dict.fromkeys(names)) or nothing


def spot(question: questions.Question, thing: scenes.Thing) -> str:
    return scenes.place(thing, question.target.cells)


def test_a_side_holds_its_corners():
    for question in of_kind("at"):
        side = set(question.slots["place"].split())
        names = [thing.name for thing in question.target.things if side <= set(spot(question, thing).split())]
        assert question.answer == (", ".join(names) or "nothing")


def test_lists_name_each_shape_and_each_colour_once():
    for question in of_kind("list"):
        things = question.target.things
        colour = question.slots.get("colour")
        wanted = {
            "which are": [thing.shape for thing in things if thing.colour == colour],
            "all shapes": [thing.shape for thing in things],
            "all colours": [thing.colour for thing in things],
        }[question.wording]
        assert question.answer == listed(wanted, f"I see no {colour} shape." if colour else "I see no shapes.")


def test_colours_shapes_and_places_of_several_things_are_listed():
    for question in of_kind("colour"):
        things = question.target.matching(question.slots["thing"])
        assert question.answer == listed([thing.colour for thing in things], "")
    for question in of_kind("shape"):
        things = question.target.matching(None, question.slots["colour"])
        assert question.answer == listed([thing.shape for thing in things], "")
    several = 0
    for question in of_kind("where"):
        words = question.slots["thing"].split()
        things = [thing for thing in question.target.things if {*words} <= {thing.shape, thing.colour, "shape", "one"}]
        assert question.answer == listed([spot(question, thing) for thing in things], "")
        several += "," in question.answer
    assert several > 20


def test_yes_and_no_are_right_and_both_asked_for():
    answers: Counter[tuple[str, str]] = Counter()
    for question in of_kind("check"):
        (thing,) = question.target.matching(question.slots["thing"])
        colour, side = question.slots.get("colour", thing.colour), question.slots.get("place", spot(question, thing))
        true = colour == thing.colour and set(side.split()) <= set(spot(question, thing).split())
        assert question.answer == ("yes" if true else "no")
        answers[question.wording, question.answer] += 1
    for question in of_kind("exists"):
        *colour, shape = question.slots["name"].split()
        shown = question.target.matching(None if shape == "shape" else shape, *colour)
        assert question.answer == ("yes" if shown else "no")
        answers["exists", question.answer] += 1
    for wording in ("is colour", "is at", "exists"):
        yes, no = answers[wording, "yes"], answers[wording, "no"]
        assert 0.4 < yes / (yes + no) < 0.6, wording


def test_counts_are_of_what_is_asked_for():
    for question in of_kind("count"):
        things = question.target.things
        number = {
            "count": len(things),
            "count colour": sum(thing.colour == question.slots.get("colour") for thing in things),
            "count shape": sum(thing.shape == question.slots.get("shape") for thing in things),
            "count colours": len({thing.colour for thing in things}),
            "count kinds": len({thing.shape for thing in things}),
        }[question.wording]
        assert question.answer == questions.NUMBERS[number]


def test_what_is_not_there_is_not_seen():
    for question in of_kind("absent"):
        words = question.slots.get("thing", f"{question.slots.get('colour')} shape").split()
        assert not any({*words} <= {thing.shape, thing.colour, "shape"} for thing in question.target.things)
        assert question.answer == f"I see no {' '.join(words)}."


def test_a_shape_in_every_colour_is_not_asked_for_in_another():
    for columns, rows in ((3, 3), (4, 2)):
        cells = [
            ((column + 0.5) * scenes.CELL, (row + 0.5) * scenes.CELL)
            for row in range(rows)
            for column in range(columns)
        ]
        spots = zip(scenes.COLOURS, cells, strict=False)
        things = tuple(scenes.Thing("circle", colour, x, y, 10) for colour, (x, y) in spots)
        picture = replace(PICTURES[0], things=things, cells=(columns, rows))
        for seed in range(20):
            asked = [q for q in about_picture(Random(seed), picture) if q.kind == "absent" or q.answer == "no"]
            assert asked and not any(
                set(q.slots.values()) & {f"{colour} circle" for colour in scenes.COLOURS} for q in asked
            )


def test_crosses_are_written_as_english_has_them():
    rng = Random(4)
    texts = [text for q in ASKED for text in (q.text(rng, "", "the picture"), q.sentence, q.thought)]
    assert any("crosses" in text for text in texts) and not any("crosss" in text for text in texts)


def test_a_textured_picture_shows_no_shapes():
    drawn = map(scenes.draw_picture, map(Random, range(500)))
    textured = [picture for picture in drawn if isinstance(picture.ground, Texture)]
    assert len(textured) > 5 and not any(picture.things for picture in textured)
    assert all(picture.image.size == tuple(28 * cells for cells in picture.cells) for picture in textured)


@pytest.mark.parametrize("wording", ["colour", "where", "at", "exists"])
def test_a_follow_up_asks_the_same_of_something_else(wording):
    followed = 0
    for seed in range(40):
        conversation = conversations.Conversation(Random(seed))
        conversation.show(1)
        asked = [question for question in conversation.questions() if question.wording == wording]
        if not asked:
            continue
        message = conversation.turn([conversations.text_part("")])
        conversation.answered(message, asked[0].answer, asked[0])
        utterance = conversation.follow_up(conversation.questions())
        if utterance is not None:
            followed += 1
            question = utterance.question
            assert question.target is asked[0].target and question.answer == utterance.answer
            if question.wording == wording:
                assert question.slots != asked[0].slots
                assert not question.things or question.things != asked[0].things
                assert any(value in utterance.text for value in question.slots.values())
            else:
                assert question.things == asked[0].things and len(question.things) == 1
    assert followed > 10


def test_the_same_may_be_asked_of_another_picture():
    found = set()
    for seed in range(200):
        conversation = conversations.Conversation(Random(seed))
        conversation.show(2)
        first, second = conversation.pictures
        asked = [question for question in conversation.questions() if question.wording == "count"]
        conversation.answered(conversation.turn([conversations.text_part("")]), asked[0].answer, asked[0])
        utterance = conversation.follow_up(asked)
        assert utterance.question.target is second and utterance.answer == questions.NUMBERS[len(second.things)]
        found.add(utterance.text)
    assert {"And in picture 2?", "What about the last picture?"} <= found


def test_a_picture_after_the_last_one_is_named_and_not_seen():
    for seed in range(50):
        conversation = conversations.Conversation(Random(seed))
        conversation.show(2)
        utterance = conversations.ask_beyond(conversation)
        number = int(utterance.answer.removeprefix("I see no picture ").removesuffix("."))
        assert number > 2 and (str(number) in utterance.text or questions.ORDINALS[number - 1] in utterance.text)
