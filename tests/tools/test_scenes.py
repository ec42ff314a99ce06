"""The drawn pictures and clips are what they say they are."""

from random import Random

import numpy as np
import pytest
import scenes


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
        assert np.abs(near - scenes.COLOURS[thing.colour]).max() < 40


def test_things_stand_in_reading_order_in_cells_of_their_own():
    rng = Random(8)
    for _ in range(50):
        cells = [(thing.y // scenes.CELL, thing.x // scenes.CELL) for thing in scenes.draw_picture(rng).things]
        assert cells == sorted(set(cells))
