"""Questions about drawn pictures and clips, with the one right answer to each: as words, a sentence, a thought."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from mini_unseen import HELDOUT
from mini_words import ALONE, ALONE_ONE, QUESTIONS
from scenes import CELL, COLOURS, SHAPES, Picture, Thing, Video, place

NUMBERS = ("none", "one", "two", "three", "four", "five")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
SIDES = {"circle": "none", "square": "four", "triangle": "three", "cross": "twelve"}
NO_SHAPES = "I see no shapes."
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
        things: The drawn things that the answer or its thought is about, in the order in which the answer names them.
        moment: The whole seconds of an answer that is a time.
        picture: The index from 0 of the picture that is the answer.
    """

    kind: str
    wording: str
    slots: dict[str, str]
    answer: str
    sentence: str
    target: Picture | Video | None = None
    thought: str = ""
    things: tuple[Thing, ...] = ()
    moment: int | None = None
    picture: int | None = None

    def text(self, rng: Random, ref: str, media: str, plain: bool = False, unseen: bool = False) -> str:
        """Return a wording: the plain one, any trained one, or one that training never uses."""
        pool = HELDOUT[self.wording] if unseen else QUESTIONS[self.wording]
        return (pool[0] if plain else rng.choice(pool)).format(**self.slots, ref=ref, media=media)

    def bare_text(self, rng: Random) -> str | None:
        """Return a wording that says nothing of its picture or clip: right where that was shown last, and alone."""
        pool = ALONE.get(self.wording, ())
        if isinstance(self.target, Picture) and len(self.target.things) == 1 and self.kind != "absent":
            pool += ALONE_ONE.get(self.wording, ())
        return rng.choice(pool).format(**self.slots) if pool else None


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
            found.append(Question("colour", "colour", {"thing": thing.shape}, thing.colour, sentence, things=(thing,)))
        if picture.only(colour=thing.colour):
            sentence = f"The {thing.colour} shape is {article(thing.shape)}."
            found.append(Question("shape", "shape", {"colour": thing.colour}, thing.shape, sentence, things=(thing,)))
        if phrase := _names(rng, picture, thing, colour_too=True):
            spot = place(thing, picture.cells)
            sentence = f"The {phrase} is {'in' if spot == 'middle' else 'at'} the {spot}."
            found.append(Question("where", "where", {"thing": phrase}, spot, sentence, things=(thing,)))
    shape = rng.choice(SHAPES)
    if picture.things:
        thing = rng.choice(picture.things)
        found.append(replace(_exists(thing.shape, thing.colour, True), things=(thing,)))
        # What is not there is often half there: its shape in another colour.
        shape = rng.choice((thing.shape, shape))
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
    seen = f"I see {listing(names)}." if names else NO_SHAPES
    found = [Question("count", "count", {}, NUMBERS[number], counted(number), thought=seen, things=picture.things)]
    for colour in dict.fromkeys((*(thing.colour for thing in picture.things[:1]), rng.choice(list(COLOURS)))):
        things = tuple(picture.matching(None, colour))
        number_of = NUMBERS[len(things)]
        sentence = counted(len(things), f"{colour} shape")
        found.append(Question("count", "count colour", {"colour": colour}, number_of, sentence, things=things))
    if number <= MAX_LISTED:
        answer = ", ".join(names) or NO_SHAPES
        sentence = f"The picture shows {listing(names)}." if names else NO_SHAPES
        found.append(Question("describe", "describe", {}, answer, sentence, things=picture.things))
        found.append(Question("json", "json", {}, as_json(picture), "", thought=seen, things=picture.things))
    return found


def at_seconds(seconds: int) -> str:
    return f"at {seconds} seconds"


def about_video(video: Video) -> list[Question]:
    """Return every kind of question that a clip can answer."""
    found = []
    if video.fps <= 1:
        moment = video.seconds(len(video.frames) - 1)
        end = at_seconds(moment)
        found.append(Question("clock", "clock", {}, end, f"The clip ends {end}.", moment=moment))
        for index in range(1, len(video.frames)):
            moment = video.seconds(index)
            answer = at_seconds(moment)
            sentence = f"The {ORDINALS[index]} frame is {answer}."
            found.append(Question("clock", "frame time", {"frame": ORDINALS[index]}, answer, sentence, moment=moment))
    if video.mover:
        slots = {"shape": video.mover.shape}
        name = video.mover.name
        sentence = f"The {video.mover.shape} moves {video.way}."
        found.append(Question("direction", "direction", slots, video.way, sentence, things=(video.mover,)))
        found.append(Question("mover", "mover", {}, f"the {name}", f"The {name} moves.", things=(video.mover,)))
    for thing, start in video.late:
        moment = video.seconds(start)
        answer = at_seconds(moment)
        sentence = f"The {thing.shape} appears {answer}."
        slots = {"shape": thing.shape}
        found.append(Question("when", "when", slots, answer, sentence, things=(thing,), moment=moment))
    for thing in video.frames[-1]:
        sentence = f"The {thing.shape} is {thing.colour}."
        slots = {"thing": thing.shape}
        found.append(Question("clip-colour", "colour", slots, thing.colour, sentence, things=(thing,)))
    return [replace(q, target=video) for q in (*found, *_happens(video))]


def _happens(video: Video) -> list[Question]:
    """Return the question of all that happens; what appears is named in order, at one time in reading order."""
    if video.mover:
        things = (video.mover,)
        answer = f"the {video.mover.name} moves {video.way}"
    elif len(video.late) == 2:
        late = sorted(video.late, key=lambda entry: (entry[1], entry[0].y // CELL, entry[0].x // CELL))
        things = tuple(thing for thing, _ in late)
        first, second = (article(thing.name) for thing in things)
        together = late[0][1] == late[1][1]
        answer = f"{first} and {second} appear" if together else f"{first} appears, then {second}"
    else:
        return []
    return [Question("happens", "happens", {}, answer, f"{answer[0].upper()}{answer[1:]}.", things=things)]


def about_pictures(rng: Random, pictures: list[Picture]) -> list[Question]:
    """Return the questions that compare two to four pictures."""
    found = []
    for index, picture in enumerate(pictures):
        others = [other for other in pictures if other is not picture]
        for thing in picture.things:
            if not any(other.matching(thing.shape, thing.colour) for other in others):
                order = f"the {ORDINALS[index]}"
                sentence = f"{order.capitalize()} picture has a {thing.name}."
                slots = {"name": thing.name}
                found.append(Question("which", "which", slots, order, sentence, things=(thing,), picture=index))
    counts = [len(picture.things) for picture in pictures]
    if counts.count(max(counts)) == 1:
        index = counts.index(max(counts))
        order = f"the {ORDINALS[index]}"
        sentence = f"{order.capitalize()} picture has more shapes."
        listed = ", ".join(NUMBERS[count] for count in counts)
        found.append(Question("more", "more", {}, order, sentence, thought=f"{listed}.", picture=index))
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
    is_picture = isinstance(target, Picture)
    group: Sequence[Any] = pictures if is_picture else videos
    noun = rng.choice(("picture", "picture", "image") if is_picture else ("clip", "video"))
    index = next(number for number, medium in enumerate(group) if medium is target)
    names = [f"{noun if noun != 'clip' else 'video'} {index + 1}", f"the {ORDINALS[index]} {noun}"]
    if index + 1 == len(group) > 1:
        names.append(f"the last {noun}")
    if len(group) == 1:
        names += [f"the {noun}"] * 2
    if len(group) == 1 or alone:
        names.append(f"this {noun}")
    if len(group) == 1 and is_picture:
        names.append("the photo")
    name = rng.choice(names)
    chance = rng.random() if alone else 1
    return ("", f"{'the' if chance < 0.5 else 'this'} {noun}") if chance < 0.8 else (f" in {name}", name)
