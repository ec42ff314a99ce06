"""Lessons of the later phases ask for what the drawn things say."""

import json
from collections import Counter
from random import Random

import late_lessons
import questions
import scenes
from conversations import Conversation, Source, media_parts
from mini_plan import phases


def samples(lesson, count=200):
    return [sample for seed in range(count) for sample in lesson(Random(seed), Source())]


def text(sample):
    return sample.messages[-1]["content"][-1]["text"]


def test_forms_are_json_sentences_and_one_of_two_colours():
    kinds: Counter[str] = Counter()
    for sample in samples(late_lessons.form_lesson):
        (picture,) = media_parts(sample, "image")
        kinds[sample.kind] += 1
        if sample.kind == "json":
            found = json.loads(sample.answer)
            found = found["shapes"] if isinstance(found, dict) else found
            assert [(entry["colour"], entry["shape"]) for entry in found] == [
                (t.colour, t.shape) for t in picture.things
            ]
        elif sample.kind == "colour":
            assert sample.answer in text(sample).lower()
            (shape,) = [shape for shape in scenes.SHAPES if shape in text(sample).lower()]
            assert {thing.colour for thing in picture.matching(shape)} == {sample.answer}
        else:
            assert sample.kind == "sentence" and sample.answer.endswith(".")
    assert min(kinds[kind] for kind in ("json", "colour", "sentence")) > 100


def test_a_colour_and_another_are_offered_in_either_order():
    first: Counter[bool] = Counter()
    for sample in samples(late_lessons.form_lesson):
        if sample.kind == "colour":
            named = sorted((c for c in scenes.COLOURS if c in text(sample).lower()), key=text(sample).lower().index)
            assert len(named) == 2
            first[named[0] == sample.answer] += 1
    assert 0.4 < first[True] / first.total() < 0.6


def test_half_of_the_questions_are_about_a_picture_that_is_not_there():
    for seed in range(100):
        asked = late_lessons.beyond_lesson(Random(seed), Source())
        count = len(media_parts(asked[0], "image"))
        missing = [sample for sample in asked if sample.kind == "missing"]
        assert len(missing) == 3 == len(asked) - len(missing)
        for sample in missing:
            assert int(sample.answer.removeprefix("I see no picture ").rstrip(".")) > count


def continued(question, *, pictures=1, videos=0, seed=0):
    """The answers that go on from a question of this wording, by the pool that their words come from."""
    conversation = Conversation(Random(seed))
    conversation.show(pictures, videos)
    found = [q for q in conversation.questions() if q.wording == question and q.target is not None]
    if not found:
        return None, {}
    conversation.answered(conversation.turn([]), found[0].answer, found[0])
    pools = {name: getattr(late_lessons, name) for name in ("SAY_IT", "AS_JSON", "WHICH_ONES", "WHICH_WAY", "WHEN")}
    said = late_lessons.in_short(conversation)
    return found[0], {name: u.answer for u in said for name, pool in pools.items() if u.text in pool}


def test_what_goes_on_from_an_answer_is_about_the_same():
    seen: Counter[str] = Counter()
    for seed in range(60):
        asked, answers = continued("count", seed=seed)
        if asked.target.things:
            assert answers["WHICH_ONES"] == ", ".join(thing.name for thing in asked.target.things)
        assert answers["SAY_IT"] == asked.sentence
        assert answers["AS_JSON"] == questions.as_json(asked.target)
        seen.update(list(answers))
        asked, answers = continued("mover", pictures=0, videos=1, seed=seed)
        if asked is not None:
            assert answers["WHICH_WAY"] == asked.target.way
            seen.update(list(answers))
        asked, answers = continued("happens", pictures=0, videos=1, seed=seed)
        if asked is not None and len(asked.things) == 1 and not asked.target.mover:
            ((_, start),) = asked.target.late
            assert answers["WHEN"] == f"at {asked.target.seconds(start)} seconds"
            seen.update(list(answers))
    assert min(seen[name] for name in ("SAY_IT", "AS_JSON", "WHICH_ONES", "WHICH_WAY", "WHEN")) > 5


def test_openings_name_no_picture_and_are_typed_in_every_case():
    said = samples(late_lessons.opening_lesson)
    described = [sample for sample in said if sample.kind == "describe"]
    for sample in described:
        (picture,) = media_parts(sample, "image")
        assert sample.answer == (", ".join(thing.name for thing in picture.things) or questions.NO_SHAPES)
    texts = {text(sample) for sample in described}
    assert {"what do you see?", "WHAT CAN YOU SEE?", "what do you see"} <= texts
    assert Counter(sample.kind for sample in said)["talk"] == 200
    assert not any("picture 1" in text(sample).lower() for sample in described)


def test_later_phases_draw_their_own_lessons_at_late_rates_of_the_first():
    first, second, third = phases(1000, 2e-3, 7)
    assert (first.seed, second.seed, third.seed) == (7, 8, 9)
    assert (first.first, second.first, third.first) == (None, 1.0, 1.0)
    assert third.begin == 900 and third.schedule(950) < 0.07
    assert set(third.stage(900).rows) == {*second.stage(900).rows, late_lessons.opening_lesson}
    assert second.begin == 700 and second.schedule(800) == first.schedule(800) < 0.2
    assert {late_lessons.form_lesson, late_lessons.short_lesson} <= set(second.stage(700).rows)
    assert not {late_lessons.form_lesson, late_lessons.short_lesson} & set(first.stage(999).rows)
