"""The drawn pictures and clips are what they say they are."""

from random import Random

import numpy as np
import pytest
import scenes
from clip_questions import about_video
from mini_grounds import Gradient
from picture_questions import about_picture


@pytest.mark.parametrize(
    ("column", "row", "name"),
    [(0, 0, "top left"), (2, 0, "top"), (3, 1, "right"), (1, 1, "middle"), (2, 2, "bottom"), (3, 2, "bottom right")],
)
def test_places_are_named_by_the_outer_rows_and_columns(column, row, name):
    thing = scenes.Thing("circle", "red", scenes.CELL * (column + 0.5), scenes.CELL * (row + 0.5), 10)
    assert scenes.place(thing, (4, 3)) == name


def test_a_thing_that_appears_is_drawn_from_its_first_frame_on():
    video = scenes.draw_appearing(Random(5), 5)
    frames = video.clip.frames.astype(int)
    changes = [index for index in range(1, 5) if np.abs(frames[index] - frames[index - 1]).max() > 100]
    assert sorted({start for _, start in video.late}) == changes


def test_frames_of_clips_are_whole_seconds_apart_and_end_in_time():
    rng = Random(6)
    for count, longest in ((4, 8), (6, 4)):
        videos = [scenes.draw_appearing(rng, count) for _ in range(90)]
        assert {video.seconds(1) for video in videos} == set(range(1, longest + 1))


def test_a_picture_looks_the_same_however_often_it_is_drawn_and_shows_its_things():
    picture = scenes.draw_picture(Random(7))
    again = scenes.draw_picture(Random(7))
    assert picture == again and np.array_equal(np.asarray(picture.image), np.asarray(again.image))
    for thing in picture.things:
        near = np.asarray(picture.image)[round(thing.y), round(thing.x)].astype(int)
        assert np.abs(near - thing.tone).max() < 30


def test_things_stand_in_reading_order_in_cells_of_their_own():
    rng = Random(8)
    for _ in range(50):
        cells = [(thing.y // scenes.CELL, thing.x // scenes.CELL) for thing in scenes.draw_picture(rng).things]
        assert cells == sorted(set(cells))


def test_things_vary_in_place_size_and_tone_and_stay_in_their_cells():
    rng = Random(9)
    things = [thing for _ in range(300) for thing in scenes.draw_picture(rng).things]
    videos = [scenes.draw_video(rng) for _ in range(40)]
    for thing in things:
        left, top = (int(at // scenes.CELL) * scenes.CELL for at in (thing.x, thing.y))
        assert left <= thing.x - thing.radius and thing.x + thing.radius < left + scenes.CELL
        assert top <= thing.y - thing.radius and thing.y + thing.radius < top + scenes.CELL
        assert max(abs(a - b) for a, b in zip(thing.tone, scenes.COLOURS[thing.colour], strict=True)) <= scenes.TONE
    for thing in (thing for video in videos for frame in video.frames for thing in frame):
        assert 0 <= thing.x - thing.radius and thing.x + thing.radius < 4 * scenes.CELL
        assert scenes.CELL * (thing.y >= scenes.CELL) <= thing.y - thing.radius
        assert thing.y + thing.radius < 4 * scenes.CELL
    assert {thing.radius for thing in things} == set(range(8, 14))
    assert {thing.x % scenes.CELL - scenes.CELL / 2 for thing in things} == set(range(-3, 4))


def test_pictures_vary_in_ground_frame_and_scale_and_keep_their_size():
    rng = Random(10)
    pictures = [scenes.draw_picture(rng) for _ in range(300)]
    assert {picture.scale for picture in pictures} == {1, 2, 3}
    assert 0.1 < np.mean([not picture.framed for picture in pictures]) < 0.3
    assert 0.4 < np.mean([isinstance(picture.ground, Gradient) for picture in pictures]) < 0.6
    assert 0.02 < np.mean([not picture.things for picture in pictures]) < 0.12
    for picture in pictures[:50]:
        assert picture.image.size == (picture.cells[0] * scenes.CELL, picture.cells[1] * scenes.CELL)


def test_a_gradient_is_light_and_the_same_in_every_frame():
    video = next(v for v in map(scenes.draw_video, map(Random, range(99))) if isinstance(v.ground, Gradient))
    ground = np.asarray(video.ground.draw(112, 112)).astype(int)
    assert ground.min() > 195 and ground.std() > 0
    assert np.array_equal(ground, np.asarray(video.ground.draw(112, 112)))


def test_every_question_about_a_picture_of_nothing_says_so():
    picture = scenes.Picture((), (3, 3), (255, 255, 255), None)
    asked = about_picture(Random(1), picture)
    answers = {question.kind: question.answer for question in asked}
    assert {question.answer for question in asked if question.kind == "at"} == {"nothing"}
    assert all(question.answer.startswith("I see no ") for question in asked if question.kind == "list")
    assert {question.answer for question in asked if question.kind == "json"} == {"[]", '{"shapes": []}'}
    assert answers["describe"] == "I see no shapes."
    assert (answers["count"], answers["exists"]) == ("none", "no")
    assert answers["absent"].startswith("I see no ")
    assert {"shape", "colour", "where", "check"}.isdisjoint(answers)


def test_what_happens_in_a_clip_names_what_moves_or_appears_in_order():
    found: set[int | str] = set()
    for seed in range(60):
        video = scenes.draw_video(Random(seed))
        (question,) = [q for q in about_video(Random(seed), video) if q.kind == "happens"]
        if video.mover:
            assert question.answer == f"the {video.mover.name} moves {video.way}"
            continue
        starts = [next(start for thing, start in video.late if thing is named) for named in question.things]
        assert starts == sorted(starts)
        found.add(len(starts))
        if len(starts) == 1:
            assert question.answer == f"a {question.things[0].name} appears"
            continue
        first, second = (f"a {thing.name}" for thing in question.things)
        together = starts[0] == starts[1]
        found.add("together" if together else "apart")
        wanted = f"{first} and {second} appear" if together else f"{first} appears, then {second}"
        assert question.answer == wanted
    assert found == {1, 2, "together", "apart"}
