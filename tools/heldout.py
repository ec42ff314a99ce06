"""Held-out questions by kind, order and turn: seeds and, for some kinds, wordings that training never uses.

from heldout import KINDS, heldout
samples = list(heldout("text-first", 200))
"""

from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import conversations as talk
from conversations import Message, Part, Sample
from heldout_makers import (
    Maker,
    after_system,
    beyond,
    each_second,
    earlier_picture,
    follow_up,
    in_short,
    missing,
    no_shapes,
    one_of_two,
    ordered,
    picture_then_clip,
    plain,
    plain_sides,
    said,
    thinking,
    tools,
    turned,
    worded,
)
from mini_unseen import SYSTEMS_HELDOUT
from questions import Question
from scenes import SHAPES, Picture


def about_one(question: Question) -> bool:
    """Return whether a question is about one picture, and not how many there are."""
    return question.target is not None


# family: its kinds, and how each is drawn
FAMILIES: dict[str, dict[str, Maker]] = {
    "single": {
        **{
            kind: plain(kind, (1, 1))
            for kind in ("shape", "colour", "describe", "exists", "absent", "check", "at", "list")
        },
        "count": plain("count", (1, 1), fits=about_one),
        "where": plain("where", (1, 1), fits=lambda question: question.slots["thing"] in SHAPES),
        "where-exactly": plain(
            "where-exactly", (1, 1), ("where",), fits=lambda question: question.slots["thing"] not in SHAPES
        ),
        "one-of-two": one_of_two,
    },
    "pair": {
        "more": plain("more", (2, 2)),
        "which": plain("which", (2, 2)),
        "other": plain("other", (2, 2), ("colour",)),
        "any-other": plain("any-other", (2, 2), ("shape", "where", "count", "describe"), fits=about_one),
    },
    "many": {"many": plain("many", (3, 4), ("colour", "shape", "where", "count", "more", "which"))},
    "clip": {
        "each-second": each_second,
        **{
            kind: plain(kind, (0, 0), videos=1)
            for kind in ("direction", "mover", "when", "clock", "clip-colour", "clip-things", "happens")
        },
    },
    "order": {
        "text-first": ordered("text-first", talk.text_first),
        "between": ordered("between", talk.between),
        "several-texts": ordered("several-texts", talk.several_texts),
    },
    "turns": {
        "second-turn": turned("second-turn", 2),
        "third-turn": turned("third-turn", 3),
        "fifth-turn": turned("fifth-turn", 5),
        "eighth-turn": turned("eighth-turn", 8),
        "follow-up": follow_up,
        "in-short": in_short,
        "earlier-picture": earlier_picture,
        "picture-then-clip": picture_then_clip,
    },
    "system": {
        "system": after_system("system", (1, 2)),
        "long-system": after_system("long-system", (5, 10)),
        "unseen-system": after_system("unseen-system", (1, 3), SYSTEMS_HELDOUT),
    },
    "wording": {
        "paraphrase": worded("paraphrase"),
        "typing": worded("typing", varied=True),
        "unseen-wording": worded("unseen-wording", unseen=True),
        "sentence": worded("sentence", sentence=True),
    },
    "talk": {
        "text": plain_sides,
        "sides": said("sides", talk.sides),
        "talk": said("talk", talk.small_talk),
        "unknown": said("unknown", talk.unknown),
        "unseen-unknown": said("unseen-unknown", lambda rng: talk.unknown(rng, unseen=True)),
        "missing": said("missing", missing),
        "beyond": beyond,
        "no-shapes": no_shapes,
    },
    "output": {
        "json": plain("json", (1, 1)),
        "thinking": thinking,
        "tools": tools("tools", usual=True),
        "renamed-tools": tools("renamed-tools", usual=False),
    },
}
KINDS = {kind: family for family, kinds in FAMILIES.items() for kind in kinds}


def drawn(sample: Sample) -> Sample:
    """Return the sample with pictures as PIL images and clips as frames."""
    messages = []
    for message in sample.messages:
        if isinstance(message["content"], list):
            message = message | {"content": [_drawn_part(part) for part in message["content"]]}
        messages.append(message)
    return replace(sample, messages=messages)


def _drawn_part(part: Part) -> Part:
    medium = part[part["type"]]
    if isinstance(medium, str):
        return part
    return part | {part["type"]: medium.image if isinstance(medium, Picture) else medium.clip}


def undrawn(kind: str, n: int, seed: int = 0) -> Iterator[Sample]:
    """Yield what `heldout` yields with pictures and clips that are not drawn yet."""
    make = FAMILIES[KINDS[kind]][kind]
    for index in range(n):
        yield make(Random(f"heldout/{seed}/{kind}/{index}"))


def heldout(kind: str, n: int, seed: int = 0) -> Iterator[Sample]:
    """Yield `n` questions of one kind from seeds outside the training range; the same ones on every call.

    Raises:
        KeyError: No kind of this name.
    """
    yield from map(drawn, undrawn(kind, n, seed))


def for_runtime(sample: Sample) -> tuple[list[Message], dict[str, Any]]:
    """Return the messages of a drawn sample, clips as `Model.generate` takes them, and its options."""

    def part(given: Part) -> Part:
        if given["type"] != "video":
            return given
        return {"type": "video", "video": given["video"].frames, "fps": given["video"].fps}

    def turn(given: Message) -> Message:
        content = given["content"]
        return given if isinstance(content, str) else given | {"content": [part(p) for p in content]}

    return list(map(turn, sample.messages)), {"enable_thinking": sample.thinking, "tools": list(sample.tools) or None}
