"""What a question is, with the one right answer to it; and questions about several pictures, or about none."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from mini_unseen import HELDOUT
from mini_words import ALONE, ALONE_ONE, QUESTIONS
from scenes import Picture, Thing, Video, place

NUMBERS = ("none", "one", "two", "three", "four", "five")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
SIDES = {"circle": "none", "square": "four", "triangle": "three", "cross": "twelve"}
NO_SHAPES = "I see no shapes."
DEFINITIONS = {
    "circle": "a round shape", "square": "a shape with four equal sides", "triangle": "a shape with three sides",
    "cross": "two bars that cross",
}  # fmt: skip


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
        return fill_slots(pool[0] if plain else rng.choice(pool), self.slots | {"ref": ref, "media": media})

    def bare_text(self, rng: Random) -> str | None:
        """Return a wording that says nothing of its picture or clip: right where that was shown last, and alone."""
        pool = ALONE.get(self.wording, ())
        if isinstance(self.target, Picture) and len(self.target.things) == 1 and self.kind != "absent":
            pool += ALONE_ONE.get(self.wording, ())
        return fill_slots(rng.choice(pool), self.slots) if pool else None


def fill_slots(form: str, slots: dict[str, str]) -> str:
    """Return a wording with its braces filled in; more than one cross are crosses."""
    return form.format(**slots).replace("crosss", "crosses")


def article(name: str) -> str:
    return f"a {name}"


def listing(names: list[str]) -> str:
    """Return "a red circle, a blue cross and a green square"."""
    return series([article(name) for name in names])


def series(names: list[str]) -> str:
    """Return "red, blue and green"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def plural(name: str) -> str:
    """Return "crosses" for "cross"."""
    return f"{name}es" if name.endswith("s") else f"{name}s"


def counted(number: int, name: str = "shape") -> str:
    """Return "There are three shapes." in the grammar of the number."""
    if number == 1:
        return f"There is one {name}."
    return f"There are {NUMBERS[number] if number else 'no'} {plural(name)}."


def as_json(picture: Picture) -> str:
    """Return the picture's things as a JSON array of shape, colour and place."""
    return json.dumps(_entries(picture))


def as_json_object(picture: Picture) -> str:
    """Return the picture's things as a JSON object that has them under "shapes"."""
    return json.dumps({"shapes": _entries(picture)})


def _entries(picture: Picture) -> list[dict[str, str]]:
    return [{"shape": t.shape, "colour": t.colour, "place": place(t, picture.cells)} for t in picture.things]


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
    thought = f"{', '.join(NUMBERS[count] for count in counts)}."
    for wording, extreme in (("more", max(counts)), ("fewer", min(counts))):
        if counts.count(extreme) == 1:
            index = counts.index(extreme)
            order = f"the {ORDINALS[index]}"
            sentence = f"{order.capitalize()} picture has {wording} shapes."
            found.append(Question("more", wording, {}, order, sentence, thought=thought, picture=index))
    return found


def about_number(pictures: list[Picture]) -> Question:
    """Return the question how many pictures there are."""
    number = len(pictures)
    return Question("count", "count pictures", {}, NUMBERS[number], counted(number, "picture"))


def about_sides() -> list[Question]:
    """Return the questions about shapes that need no picture."""
    found = []
    for shape, number in SIDES.items():
        sentence = f"A {shape} has {'no' if number == 'none' else number} sides."
        found.append(Question("text", "sides", {"shape": shape}, number, sentence))
        meaning = DEFINITIONS[shape]
        is_a = f"A {shape} is {meaning}." if shape != "cross" else f"A cross is made of {meaning}."
        found.append(Question("text", "what is", {"shape": shape}, meaning, is_a))
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
