"""What the trainer draws at which step: conversations that look back, clips in which things appear, settling heads."""

from random import Random

import pytest
from conversations import Sample, Source, media_parts
from curriculum import happens_lesson, look_back
from mini_plan import STAGES, THIRD, Plan


def drawn(make, count: int = 60) -> list[list[Sample]]:
    rng = Random(8)
    return [samples for samples in (make(rng, Source()) for _ in range(count)) if samples]


def test_a_look_back_asks_in_a_later_turn_mostly_about_what_was_shown_before_it():
    conversations = drawn(look_back)
    assert len(conversations) > 50
    earlier = late = 0
    for samples in conversations:
        for sample in samples:
            roles = [turn["role"] for turn in sample.messages if turn["role"] != "system"]
            assert roles[-2:] == ["assistant", "user"] and roles[0] == "user"
            new = [part for part in sample.messages[-1]["content"] if part["type"] != "text"]
            target = sample.question.target
            if target is not None:
                shown_now = any(part[part["type"]] is target for part in new)
                earlier, late = earlier + (not shown_now), late + shown_now
    assert earlier > 5 * late > 0


def test_a_look_back_holds_no_more_media_than_a_conversation_may():
    for first, *_ in drawn(look_back, 200):
        assert len(media_parts(first, "image")) <= 4 and len(media_parts(first, "video")) <= 2


def test_a_happens_lesson_shows_a_clip_in_which_things_appear_and_asks_what_happens():
    for samples in drawn(happens_lesson, 20):
        asked = [sample.answer for sample in samples if sample.kind == "happens"]
        assert len(asked) >= 2 and all("appear" in answer for answer in asked)
        (video,) = media_parts(samples[0], "video")
        assert len(video.late) in (1, 2)


def test_every_maker_of_the_plan_gives_samples():
    for make in {make for stage in (*STAGES, *THIRD) for make in stage.rows}:
        assert drawn(make, 10), make.__name__


@pytest.mark.parametrize(("begin", "alone"), [(0, []), (100, [100, 159])])
def test_heads_settle_where_a_run_goes_on(begin, alone):
    plan = Plan(steps=400, rate=1e-3, seed=0, begin=begin)
    settling = [step for step in range(begin, 400) if plan.settling(step)]
    assert settling[:1] + settling[-1:] == alone


def test_stages_follow_each_other_and_the_rate_falls():
    plan = Plan(steps=400, rate=1e-3, seed=0, begin=0)
    assert [plan.stage(step) for step in (0, 100, 200, 399)] == list(STAGES)
    rates = [plan.schedule(step) for step in range(plan.warmup, 400)]
    assert rates == sorted(rates, reverse=True) and rates[-1] > 0
