"""The right classes at the tokens of an answer: what is asked, and what the media say to it.

They serve training only, as those of `mini_heads.py` do. Where an answer lists several things, each of its tokens has
the classes of the thing that it is about.
"""

from bisect import bisect_right

import torch
from conversations import Sample
from mini_batches import IGNORED, Batch
from mini_heads import (
    COLOUR_CLASSES,
    NUMBER_CLASSES,
    SHAPE_CLASSES,
    WAYS,
    Labels,
    gathered_labels,
    number_class,
)
from mini_words import QUESTIONS
from questions import Question
from scenes import CLIP_CELLS, COLOURS, PLACES, SHAPES, Picture, Thing, Video, place
from transformers import LlamaTokenizer

WORDINGS = tuple(QUESTIONS)
SECONDS = 32
ASKED_HEADS = {
    "wording": 1 + len(WORDINGS),  # 0 is anything but a question about shapes
    "asked shape": SHAPE_CLASSES,
    "asked colour": COLOUR_CLASSES,
    "asked place": 1 + len(PLACES),
    "asked number": NUMBER_CLASSES,
}
FOUND_HEADS = {
    "shape": SHAPE_CLASSES,
    "colour": COLOUR_CLASSES,
    "place": len(PLACES),
    "way": len(WAYS),
    "moment": SECONDS,
    "found number": NUMBER_CLASSES,
}


def _number(target: object, batch: Batch, row_media: list[int]) -> int:
    """Return the class of the picture or the clip among a row's media, 0 for none."""
    for index in row_media:
        if batch.media[index] is target:
            return number_class(batch.media[index], batch.numbers[index])
    return 0


def _asked(question: Question | None) -> dict[str, int]:
    """Return the classes of a question's kind and of the shape, the colour and the place that it names."""
    if question is None:
        return dict.fromkeys(ASKED_HEADS, 0)
    named = " ".join(question.slots.values()).split()
    shapes = [1 + SHAPES.index(word) for word in named if word in SHAPES]
    colours = [1 + list(COLOURS).index(word) for word in named if word in COLOURS]
    return {
        "wording": 1 + WORDINGS.index(question.wording),
        "asked shape": shapes[0] if shapes else 0,
        "asked colour": colours[0] if colours else 0,
        "asked place": 1 + PLACES.index(question.slots["place"]) if "place" in question.slots else 0,
    }


def _of_thing(thing: Thing, question: Question) -> dict[str, int]:
    classes = {"shape": 1 + SHAPES.index(thing.shape), "colour": 1 + list(COLOURS).index(thing.colour)}
    target = question.target
    if isinstance(target, Picture):
        classes["place"] = PLACES.index(place(thing, target.cells))
    elif isinstance(target, Video) and thing.shape != (target.mover and target.mover.shape):  # no two are of one shape
        classes["place"] = PLACES.index(place(thing, CLIP_CELLS))
    return classes


def _common(question: Question) -> dict[str, int]:
    """Return the classes that all tokens of an answer share."""
    classes = {}
    if isinstance(question.target, Video) and question.target.way:
        classes["way"] = WAYS.index(question.target.way)
    if question.moment is not None and question.moment < SECONDS:
        classes["moment"] = question.moment
    if question.picture is not None:
        classes["found number"] = 1 + question.picture
    return classes


def _words(thing: Thing, question: Question) -> tuple[str, ...]:
    """Return the words by which an answer names a thing: its shape and its colour, or where it is."""
    if question.wording != "where":
        return thing.shape, thing.colour
    return (place(thing, question.target.cells if isinstance(question.target, Picture) else CLIP_CELLS),)


def _ends(answer: str, begin: int, end: int, named: list[tuple[str, ...]]) -> list[int]:
    """Return where the text about each thing ends in a part of an answer: after the last of the words that name it."""
    ends = []
    start = begin
    for names in named:
        found = [answer.find(name, start, end) for name in names]
        start = max([start, *(at + 1 for at in found if at >= 0)])
        following = answer.find("}", start, end)
        start = start if following < 0 else following
        ends.append(start)
    return ends


def answer_labels(batch: Batch, tokenizer: LlamaTokenizer) -> Labels:
    """Return the classes (B, N) of `ASKED_HEADS` and `FOUND_HEADS`, at each token that predicts one of an answer."""
    labels = {name: torch.full(batch.labels.shape, IGNORED) for name in (*ASKED_HEADS, *FOUND_HEADS)}
    before = 0
    for row, samples in enumerate(batch.samples):
        count = batch.media_counts[row]
        row_media = list(range(before, before + count))
        before += count
        for number, sample in enumerate(samples, 1):
            answered = (batch.labels[row] != IGNORED) & (batch.owner[row] == number)
            predicting = answered.nonzero().flatten() - 1
            classes = _asked(sample.question)
            if sample.question is not None:
                classes |= _common(sample.question)
                classes["asked number"] = _number(sample.question.target, batch, row_media)
            for name, value in classes.items():
                labels[name][row, predicting] = value
            if sample.question is not None and sample.question.things:
                _label_things(labels, row, predicting, sample, tokenizer)
    return labels


def _label_things(
    labels: Labels, row: int, predicting: torch.Tensor, sample: Sample, tokenizer: LlamaTokenizer
) -> None:
    """Write the classes of the thing that each token of an answer is about."""
    question = sample.question
    of_things = [_of_thing(thing, question) for thing in question.things]
    named = [_words(thing, question) for thing in question.things]
    thought = sample.answer.find("</think>") + len("</think>") if sample.thinking else 0
    in_thought = _ends(sample.answer, 0, thought, named)
    in_answer = _ends(sample.answer, thought, len(sample.answer), named)
    offsets = tokenizer(sample.answer, return_offsets_mapping=True).offset_mapping
    starts = [start for start, _ in offsets] + [len(sample.answer)]
    for position, start in zip(predicting.tolist(), starts, strict=True):
        ends = in_thought if start < thought else in_answer
        classes = of_things[min(bisect_right(ends, start), len(of_things) - 1)]
        for name, value in classes.items():
            labels[name][row, position] = value


def media_labels(batch: Batch) -> Labels:
    """Return the classes of `GATHERED_HEADS` for the table of the batch's features."""
    parts = [gathered_labels(medium, number) for medium, number in zip(batch.media, batch.numbers, strict=True)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
