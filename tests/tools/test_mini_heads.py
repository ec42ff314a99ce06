"""What the trainer's heads are asked at media tokens is what the media show there."""

from dataclasses import replace
from random import Random

import mini_heads
import pytest
import torch
from mini_batches import media_tokens
from scenes import COLOURS, GROUNDS, SHAPES, Picture, Thing, draw_appearing, draw_moving, draw_picture

SHAPE, COLOUR = "cross", "blue"
CROSS = Thing(SHAPE, COLOUR, 42.0, 14.0, 11)  # in the second column of the first row


def a_picture(*things: Thing) -> Picture:
    drawn = draw_picture(Random(0))
    return replace(drawn, things=things, cells=(3, 2), ground=GROUNDS[0])


@pytest.mark.parametrize("draw", [draw_picture, lambda rng: draw_moving(rng, 5), lambda rng: draw_appearing(rng, 4)])
def test_each_token_has_a_class_below_its_heads_width(draw):
    medium = draw(Random(1))
    for labels, heads in (
        (mini_heads.cell_labels(medium), mini_heads.CELL_HEADS),
        (mini_heads.gathered_labels(medium, 1), mini_heads.GATHERED_HEADS),
    ):
        assert labels.keys() == heads.keys()
        for name, found in labels.items():
            assert len(found) == media_tokens(medium)
            known = found[found != mini_heads.IGNORED]
            assert not len(known) or 0 <= known.min() and known.max() < heads[name]


def test_a_cell_is_labelled_by_the_thing_in_it_and_the_others_are_none():
    labels = mini_heads.cell_labels(a_picture(CROSS))
    assert labels["shape a"].tolist() == [0, 1 + SHAPES.index(SHAPE), 0, 0, 0, 0]
    assert labels["colour a"].tolist() == [0, 1 + list(COLOURS).index(COLOUR), 0, 0, 0, 0]
    assert labels["column"].tolist() == [0, 1, 2, 0, 1, 2] and labels["row"].tolist() == [0, 0, 0, 2, 2, 2]
    assert set(labels["shape b"].tolist()) == set(labels["tens a"].tolist()) == {mini_heads.IGNORED}


def test_a_thing_between_two_cells_is_asked_of_one_of_them_only():
    labels = mini_heads.cell_labels(a_picture(replace(CROSS, x=50.0)))
    assert labels["shape a"].tolist() == [0, 1 + SHAPES.index(SHAPE), mini_heads.IGNORED, 0, 0, 0]


def test_the_drawn_time_is_asked_of_the_top_row_and_follows_the_frames():
    video = replace(draw_appearing(Random(2), 4), fps=1 / 7)
    labels = mini_heads.cell_labels(video)
    ones = [labels[f"ones {frame}"].view(2, 4, 4) for frame in "ab"]
    tens = [labels[f"tens {frame}"].view(2, 4, 4) for frame in "ab"]
    read = [10 * int(t[pair, 0, 0]) + int(o[pair, 0, 0]) for pair in (0, 1) for t, o in zip(tens, ones, strict=True)]
    assert read == [0, 7, 14, 21]
    assert (ones[0][:, 1:] == mini_heads.IGNORED).all()


def test_things_are_counted_in_reading_order():
    other = replace(CROSS, x=14.0, y=42.0)
    assert mini_heads.gathered_labels(a_picture(CROSS, other), 2)["count"].tolist() == [0, 1, 1, 2, 2, 2]


def test_the_way_is_asked_at_the_last_frames_only_and_a_start_where_it_happens():
    moving = draw_moving(Random(3), 4)
    way = mini_heads.gathered_labels(moving, 1)["way"].view(2, 16)
    assert (way[0] == mini_heads.IGNORED).all() and (way[1] == 1 + mini_heads.WAYS.index(moving.way)).all()
    appearing = draw_appearing(Random(4), 4)
    starts = mini_heads.gathered_labels(appearing, 2)
    assert int((starts["starts"] > 0).sum()) == len(appearing.late)
    assert set(starts["number"].tolist()) == {6}


def test_heads_learn_from_known_classes_only():
    heads = mini_heads.Heads({"row": 3}, 8)
    states = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    hits: dict[str, list[float]] = {"row": []}
    nothing = heads(states, {"row": torch.full((4,), mini_heads.IGNORED)}, hits)
    assert float(nothing.detach()) == 0 and hits == {"row": []}
    some = heads(states, {"row": torch.tensor([mini_heads.IGNORED, 1, 1, 1])}, hits)
    same = heads(states[1:], {"row": torch.tensor([1, 1, 1])}, hits)
    torch.testing.assert_close(some, same)
    assert float(some.detach()) > 0 and len(hits["row"]) == 2
