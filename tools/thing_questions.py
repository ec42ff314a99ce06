"""Questions that a picture and the last frame of a clip answer alike: what things there are, and how many."""

from collections.abc import Sequence
from random import Random

from questions import NO_SHAPES, NUMBERS, Question, article, counted, listing, plural, series
from scenes import COLOURS, SHAPES, Thing, matching

# None of them is drawn.
OTHER_COLOURS = ("black", "white", "orange", "pink", "brown", "grey")
OTHER_SHAPES = ("rectangle", "hexagon", "oval", "pentagon", "line")


def each_once(things: Sequence[Thing], what: str) -> list[Thing]:
    """Return the first thing of each "shape", or of each "colour", in reading order."""
    first: dict[str, Thing] = {}
    for thing in things:
        first.setdefault(getattr(thing, what), thing)
    return list(first.values())


def see_no(kind: str, wording: str, slots: dict[str, str], name: str) -> Question:
    """Return a question about something that is not there."""
    answer = f"I see no {name}."
    return Question(kind, wording, slots, answer, answer)


def exists(name: str, things: Sequence[Thing]) -> Question:
    """Return the question whether there is something of this name; `things` are those that have it."""
    sentence = f"Yes, there is a {name}." if things else f"No, there is no {name}."
    only = tuple(things) if len(things) == 1 else ()
    return Question("exists", "exists", {"name": name}, "yes" if things else "no", sentence, things=only)


def ask_existence(rng: Random, things: Sequence[Thing]) -> list[Question]:
    """Return questions for things that are there and for as many that are not, by shape, by colour and by both."""
    colours = list(COLOURS)
    found = [exists("shape", things)] if rng.random() < 0.3 else []
    if things:
        thing = rng.choice(things)
        found.append(exists(thing.name, matching(things, thing.shape, thing.colour)))
        if rng.random() < 0.5:
            found.append(exists(thing.shape, matching(things, thing.shape)))
        else:
            found.append(exists(f"{thing.colour} shape", matching(things, None, thing.colour)))
        # What is not there is often half there: its shape in another colour.
        if others := [colour for colour in colours if not matching(things, thing.shape, colour)]:
            found.append(exists(f"{rng.choice(others)} {thing.shape}", ()))
    absent = [shape for shape in SHAPES if not matching(things, shape)]
    absent += [f"{colour} shape" for colour in colours if not matching(things, None, colour)]
    strange = f"{rng.choice(OTHER_COLOURS)} {rng.choice(SHAPES)}", rng.choice(OTHER_SHAPES)
    names = [rng.choice(absent)] if absent and rng.random() < 0.8 else [rng.choice(strange)]
    return found + [exists(name, ()) for name in names]


def count(things: Sequence[Thing], wording: str, slots: dict[str, str], name: str) -> Question:
    """Return the question how many things of this name there are, namely these."""
    number = len(things)
    return Question("count", wording, slots, NUMBERS[number], counted(number, name), things=tuple(things))


def ask_counts(rng: Random, things: Sequence[Thing]) -> list[Question]:
    """Return questions for the number of shapes: of all, of a colour, of a shape, of colours and of kinds."""
    seen = f"I see {listing([thing.name for thing in things])}." if things else NO_SHAPES
    number = len(things)
    found = [Question("count", "count", {}, NUMBERS[number], counted(number), thought=seen, things=tuple(things))]
    others = rng.choice(OTHER_COLOURS) if rng.random() < 0.1 else rng.choice(list(COLOURS))
    for colour in dict.fromkeys((*(thing.colour for thing in things[:1]), others)):
        found.append(count(matching(things, None, colour), "count colour", {"colour": colour}, f"{colour} shape"))
    for shape in dict.fromkeys((*(thing.shape for thing in things[-1:]), rng.choice(SHAPES))):
        found.append(count(matching(things, shape), "count shape", {"shape": shape}, shape))
    found.append(count(each_once(things, "colour"), "count colours", {}, "colour"))
    found.append(count(each_once(things, "shape"), "count kinds", {}, "kind"))
    return found


def ask_lists(rng: Random, things: Sequence[Thing]) -> list[Question]:
    """Return questions for the shapes of a colour, for all kinds of shapes and for all colours, each named once."""
    found = []
    for colour in dict.fromkeys((*(thing.colour for thing in things[:1]), rng.choice(list(COLOURS)))):
        of_colour = each_once(matching(things, None, colour), "shape")
        if not of_colour:
            found.append(see_no("list", "which are", {"colour": colour}, f"{colour} shape"))
            continue
        names = [thing.shape for thing in of_colour]
        sentence = f"I see {listing(names)}."
        found.append(
            Question("list", "which are", {"colour": colour}, ", ".join(names), sentence, things=tuple(of_colour))
        )
    for wording, what, say in (("all shapes", "shape", listing), ("all colours", "colour", series)):
        kinds = each_once(things, what)
        names = [getattr(thing, what) for thing in kinds]
        sentence = f"I see {say(names)}." if names else NO_SHAPES
        found.append(Question("list", wording, {}, ", ".join(names) or NO_SHAPES, sentence, things=tuple(kinds)))
    return found


def ask_colour(things: Sequence[Thing], shape: str, kind: str = "colour") -> Question:
    """Return the question for the colour of the things of a shape; several colours are listed."""
    kinds = each_once(matching(things, shape), "colour")
    colours = [thing.colour for thing in kinds]
    subject = f"The {shape} is" if len(matching(things, shape)) == 1 else f"The {plural(shape)} are"
    return Question(
        kind, "colour", {"thing": shape}, ", ".join(colours), f"{subject} {series(colours)}.", things=tuple(kinds)
    )


def ask_shape(things: Sequence[Thing], colour: str) -> Question:
    """Return the question for the shape of the things of a colour; several shapes are listed."""
    kinds = each_once(matching(things, None, colour), "shape")
    names = [thing.shape for thing in kinds]
    if len(matching(things, None, colour)) == 1:
        sentence = f"The {colour} shape is {article(names[0])}."
    else:
        sentence = f"The {colour} shapes are {plural(names[0]) if len(names) == 1 else listing(names)}."
    return Question("shape", "shape", {"colour": colour}, ", ".join(names), sentence, things=tuple(kinds))
