"""Questions about one drawn picture, with the one right answer to each."""

from dataclasses import replace
from random import Random

from questions import NO_SHAPES, Question, as_json, as_json_object, listing, series
from scenes import COLOURS, PLACES, SHAPES, Picture, Thing, place
from thing_questions import (
    ask_colour,
    ask_counts,
    ask_existence,
    ask_lists,
    ask_shape,
    each_once,
    plural,
    see_no,
)


def about_picture(rng: Random, picture: Picture) -> list[Question]:
    """Return every kind of question about one picture that it can answer, in one random form each or two."""
    things = picture.things
    found = [ask_colour(things, thing.shape) for thing in each_once(things, "shape")]
    found += [ask_shape(things, thing.colour) for thing in each_once(things, "colour")]
    found += [_where(rng, picture, thing) for thing in things]
    found += _of_absent(rng, picture)
    found += _checks(rng, picture)
    found += ask_existence(rng, things)
    found += ask_counts(rng, things)
    found += _of_all(picture)
    found += ask_lists(rng, things)
    found += _at_places(rng, picture)
    return [replace(question, target=picture) for question in found]


def stands(spot: str) -> str:
    """Return "in the middle" or "at the top left"."""
    return f"{'in' if spot == 'middle' else 'at'} the {spot}"


def holds(side: str, spot: str) -> bool:
    """Return whether a place or a side of a picture, such as "left", holds a place, such as "top left"."""
    return set(side.split()) <= set(spot.split())


def _where(rng: Random, picture: Picture, thing: Thing) -> Question:
    """Return the question where the things of this one's shape, colour or both are; several places are listed."""
    shape, colour = rng.choice(((thing.shape, None), (thing.shape, thing.colour), (None, thing.colour)))
    alike = picture.matching(shape, colour)
    by_place: dict[str, Thing] = {}
    for one in alike:
        by_place.setdefault(place(one, picture.cells), one)
    name = " ".join(filter(None, (colour, shape or rng.choice(("shape", "one")))))
    subject = f"The {name} is" if len(alike) == 1 else f"The {plural(name)} are"
    sentence = f"{subject} {series([stands(spot) for spot in by_place])}."
    return Question("where", "where", {"thing": name}, ", ".join(by_place), sentence, things=tuple(by_place.values()))


def _of_absent(rng: Random, picture: Picture) -> list[Question]:
    """Return questions about a shape, a colour, and a shape in another colour, that the picture does not show."""
    found = []
    colours = list(COLOURS)
    if absent := [s for s in SHAPES if not picture.matching(s)]:
        shape = rng.choice(absent)
        wording = rng.choice(("colour", "where", "colour", "where", "is colour", "is at"))
        more = {"is colour": {"colour": rng.choice(colours)}, "is at": {"place": rng.choice(PLACES)}}.get(wording, {})
        found.append(see_no("absent", wording, {"thing": shape} | more, shape))
    if absent := [c for c in COLOURS if not picture.matching(None, c)]:
        colour = rng.choice(absent)
        found.append(see_no("absent", "shape", {"colour": colour}, f"{colour} shape"))
    shape = rng.choice(picture.things).shape if picture.things else ""
    if shape and (other := [c for c in colours if not picture.matching(shape, c)]):
        colour = rng.choice(other)
        found.append(see_no("absent", "where", {"thing": f"{colour} {shape}"}, f"{colour} {shape}"))
    return found


def _checks(rng: Random, picture: Picture) -> list[Question]:
    """Return questions whether a thing has a colour, and a place; as many are true as not."""
    alone = [thing for thing in picture.things if picture.only(shape=thing.shape)]
    found = []
    for thing in rng.sample(alone, min(len(alone), 2)):
        spot = place(thing, picture.cells)
        true = rng.random() < 0.5
        colour = rng.choice([c for c in COLOURS if (c == thing.colour) == true])
        found.append(_check(thing, "is colour", {"colour": colour}, true, f"is {thing.colour}"))
        true = rng.random() < 0.5
        side = rng.choice([side for side in PLACES if holds(side, spot) == true])
        found.append(_check(thing, "is at", {"place": side}, true, f"is {stands(spot)}"))
    return found


def _check(thing: Thing, wording: str, slots: dict[str, str], true: bool, fact: str) -> Question:
    sentence = f"{'Yes' if true else 'No'}, the {thing.shape} {fact}."
    answer = "yes" if true else "no"
    return Question("check", wording, {"thing": thing.shape} | slots, answer, sentence, things=(thing,))


def _of_all(picture: Picture) -> list[Question]:
    """Return the questions that all of the picture answers, as words and as JSON."""
    names = [thing.name for thing in picture.things]
    seen = f"I see {listing(names)}." if names else NO_SHAPES
    sentence = f"The picture shows {listing(names)}." if names else NO_SHAPES
    found = [Question("describe", "describe", {}, ", ".join(names) or NO_SHAPES, sentence, things=picture.things)]
    for wording, write in (("json", as_json), ("json object", as_json_object)):
        found.append(Question("json", wording, {}, write(picture), "", thought=seen, things=picture.things))
    return found


def _at_places(rng: Random, picture: Picture) -> list[Question]:
    """Return questions for what stands at a place or a side: at two that hold something, and at any one."""
    spots = [place(thing, picture.cells) for thing in picture.things]
    filled = [side for side in PLACES if any(holds(side, spot) for spot in spots)]
    found = []
    for side in dict.fromkeys((*rng.sample(filled, min(len(filled), 2)), rng.choice(PLACES))):
        things = tuple(thing for thing, at in zip(picture.things, spots, strict=True) if holds(side, at))
        names = [thing.name for thing in things]
        sentence = f"I see {listing(names)} {stands(side)}." if names else f"There is nothing {stands(side)}."
        found.append(Question("at", "at", {"place": side}, ", ".join(names) or "nothing", sentence, things=things))
    return found
