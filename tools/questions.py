"""Questions about drawn pictures and clips, with the one right answer to each: as words, a sentence, a thought."""

import json
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from mini_words import HELDOUT, QUESTIONS
from scenes import COLOURS, SHAPES, Picture, Thing, Video, place

NUMBERS = ("none", "one", "two", "three", "four", "five")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
SIDES = {"circle": "none", "square": "four", "triangle": "three", "cross": "twelve"}
MAX_LISTED = 3  # things in an answer that lists all of a picture


@dataclass(frozen=True)
class Question:
    """A question without its wording.

    Attributes:
        kind: Its name in the tables of accuracy.
        wording: Its key in `mini_words.QUESTIONS`.
        slots: What the wording's braces stand for, but for `ref` and `media`.
        answer: The answer in a few words.
        sentence: The answer as a sentence; it is also the thought before the answer, unless `thought` is given.
        target: The picture or clip it is about; None for all pictures, or for none.
    """

    kind: str
    wording: str
    slots: dict[str, str]
    answer: str
    sentence: str
    target: Picture | Video | None = None
    thought: str = ""

    def text(self, rng: Random, ref: str, media: str, plain: bool = False, unseen: bool = False) -> str:
        """Return a wording: the plain one, any trained one, or one that training never uses."""
        pool = HELDOUT[self.wording] if unseen else QUESTIONS[self.wording]
        return (pool[0] if plain else rng.choice(pool)).format(**self.slots, ref=ref, media=media)


def article(name: str) -> str:
    return f"a {name}"


def listing(names: list[str]) -> str:
    """Return "a red circle, a blue cross and a green square"."""
    *most, last = [article(name) for name in names]
    return f"{', '.join(most)} and {last}" if most else last


def counted(number: int, name: str = "shape", word: str = "There") -> str:
    """Return "There are three shapes." in the grammar of the number."""
    if number == 1:
        return f"{word} is one {name}."
    return f"{word} are {NUMBERS[number] if number else 'no'} {name}s."


def as_json(picture: Picture) -> str:
    """Return the picture's things as a JSON array of shape, colour and place."""
    things = [{"shape": t.shape, "colour": t.colour, "place": place(t, picture.cells)} for t in picture.things]
    return json.dumps(things)


def _names(rng: Random, picture: Picture, thing: Thing, colour_too: bool) -> str | None:
    """Return a phrase that only this thing of the picture answers to, or None."""
    phrases = [thing.shape] if picture.only(shape=thing.shape) else []
    if colour_too and picture.only(thing.shape, thing.colour):
        phrases.append(thing.name)
    return rng.choice(phrases) if phrases else None


def about_picture(rng: Random, picture: Picture) -> list[Question]:
    """Return every kind of question about one picture that it can answer, in one random form each or two."""
    return [replace(q, target=picture) for q in (*_of_things(rng, picture), *_of_all(rng, picture))]


def _of_things(rng: Random, picture: Picture) -> list[Question]:
    found = []
    for thing in picture.things:
        if picture.only(shape=thing.shape):
            sentence = f"The {thing.shape} is {thing.colour}."
            found.append(Question("colour", "colour", {"thing": thing.shape}, thing.colour, sentence))
        if picture.only(colour=thing.colour):
            sentence = f"The {thing.colour} shape is {article(thing.shape)}."
            found.append(Question("shape", "shape", {"colour": thing.colour}, thing.shape, sentence))
        if phrase := _names(rng, picture, thing, colour_too=True):
            spot = place(thing, picture.cells)
            sentence = f"The {phrase} is {'in' if spot == 'middle' else 'at'} the {spot}."
            found.append(Question("where", "where", {"thing": phrase}, spot, sentence))
    thing = rng.choice(picture.things)
    found.append(_exists(thing.shape, thing.colour, True))
    # What is not there is often half there: its shape in another colour.
    shape = rng.choice((thing.shape, rng.choice(SHAPES)))
    colour = rng.choice(list(COLOURS))
    if not picture.matching(shape, colour):
        found.append(_exists(shape, colour, False))
    if absent := [s for s in SHAPES if not picture.matching(s)]:
        shape = rng.choice(absent)
        answer = f"I see no {shape}."
        found.append(Question("absent", rng.choice(("colour", "where")), {"thing": shape}, answer, answer))
    if absent := [c for c in COLOURS if not picture.matching(None, c)]:
        colour = rng.choice(absent)
        answer = f"I see no {colour} shape."
        found.append(Question("absent", "shape", {"colour": colour}, answer, answer))
    return found


def _exists(shape: str, colour: str, true: bool) -> Question:
    name = f"{colour} {shape}"
    sentence = f"Yes, there is a {name}." if true else f"No, there is no {name}."
    return Question("exists", "exists", {"name": name}, "yes" if true else "no", sentence)


def _of_all(rng: Random, picture: Picture) -> list[Question]:
    names = [thing.name for thing in picture.things]
    number = len(picture.things)
    seen = f"I see {listing(names)}."
    found = [Question("count", "count", {}, NUMBERS[number], counted(number), thought=seen)]
    for colour in {picture.things[0].colour, rng.choice(list(COLOURS))}:
        count = len(picture.matching(None, colour))
        sentence = counted(count, f"{colour} shape")
        found.append(Question("count", "count colour", {"colour": colour}, NUMBERS[count], sentence))
    if number <= MAX_LISTED:
        found.append(Question("describe", "describe", {}, ", ".join(names), f"The picture shows {listing(names)}."))
        found.append(Question("json", "json", {}, as_json(picture), "", thought=seen))
    return found


def about_video(video: Video) -> list[Question]:
    """Return every kind of question that a clip can answer."""
    end = f"at {video.seconds(len(video.frames) - 1)} seconds"
    found = []
    if video.fps <= 1:
        found.append(Question("clock", "clock", {}, end, f"The clip ends {end}."))
        for index in range(1, len(video.frames)):
            answer = f"at {video.seconds(index)} seconds"
            sentence = f"The {ORDINALS[index]} frame is {answer}."
            found.append(Question("clock", "frame time", {"frame": ORDINALS[index]}, answer, sentence))
    if video.mover:
        shape = video.mover.shape
        name = video.mover.name
        found.append(Question("direction", "direction", {"shape": shape}, video.way, f"The {shape} moves {video.way}."))
        found.append(Question("mover", "mover", {}, f"the {name}", f"The {name} moves."))
    for thing, start in video.late:
        answer = f"at {video.seconds(start)} seconds"
        found.append(Question("when", "when", {"shape": thing.shape}, answer, f"The {thing.shape} appears {answer}."))
    for thing in video.frames[-1]:
        sentence = f"The {thing.shape} is {thing.colour}."
        found.append(Question("clip-colour", "colour", {"thing": thing.shape}, thing.colour, sentence))
    return [replace(q, target=video) for q in found]


def about_pictures(rng: Random, pictures: list[Picture]) -> list[Question]:
    """Return the questions that compare two to four pictures."""
    found = []
    for index, picture in enumerate(pictures):
        others = [other for other in pictures if other is not picture]
        for thing in picture.things:
            if not any(other.matching(thing.shape, thing.colour) for other in others):
                order = f"the {ORDINALS[index]}"
                sentence = f"{order.capitalize()} picture has a {thing.name}."
                found.append(Question("which", "which", {"name": thing.name}, order, sentence))
    counts = [len(picture.things) for picture in pictures]
    if counts.count(max(counts)) == 1:
        order = f"the {ORDINALS[counts.index(max(counts))]}"
        listed = ", ".join(NUMBERS[count] for count in counts)
        found.append(
            Question("more", "more", {}, order, f"{order.capitalize()} picture has more shapes.", thought=f"{listed}.")
        )
    return found


def about_sides() -> list[Question]:
    """Return the questions that need no picture."""
    found = []
    for shape, number in SIDES.items():
        sentence = f"A {shape} has {'no' if number == 'none' else number} sides."
        found.append(Question("text", "sides", {"shape": shape}, number, sentence))
    return found


def references(rng: Random, target: Any, pictures: list[Picture], videos: list[Video], alone: bool) -> tuple[str, str]:
    """Return `ref` and `media` that name the target among a conversation's pictures and clips.

    Args:
        rng: Chooses among the names.
        target: The picture or clip.
        pictures: All pictures so far, in order.
        videos: All clips so far, in order.
        alone: Whether the last message that showed anything showed nothing else, so that it needs no name.
    """
    group, noun = (pictures, "picture") if isinstance(target, Picture) else (videos, rng.choice(("clip", "video")))
    index = next(number for number, medium in enumerate(group) if medium is target)
    names = [f"{noun if noun != 'clip' else 'video'} {index + 1}", f"the {ORDINALS[index]} {noun}"]
    if index + 1 == len(group) > 1:
        names.append(f"the last {noun}")
    if len(group) == 1:
        names += [f"the {noun}"] * 2
    name = rng.choice(names)
    return ("", f"the {noun}") if alone and rng.random() < 0.8 else (f" in {name}", name)
