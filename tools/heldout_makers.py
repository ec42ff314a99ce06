"""How held-out questions are drawn: each function here returns or is what draws one kind of `heldout.py`."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import conversations as talk
from conversations import Conversation, Part, Sample, Source, Utterance
from curriculum import show_any, tool_conversation, typed
from late_lessons import either, short_lesson
from mini_sayings import SYSTEMS
from mini_tools import is_usual
from questions import Question, about_sides
from scenes import Picture, draw_moving, draw_picture

Maker = Callable[[Random], Sample]


def _choose(
    conversation: Conversation,
    kinds: tuple[str, ...] | None = None,
    about: object = None,
    fits: Callable[[Question], bool] = lambda question: True,
) -> Question | None:
    """Return a question of one of the kinds, about one medium if it is given, or None where there is none."""
    questions = [
        q
        for q in conversation.questions()
        if (kinds is None or q.kind in kinds) and (about is None or q.target is about) and fits(q)
    ]
    kind = conversation.rng.choice(sorted({q.kind for q in questions})) if questions else None
    return conversation.rng.choice([q for q in questions if q.kind == kind]) if questions else None


def _ask(conversation: Conversation, kind: str, utterance: Utterance, order=talk.media_first, thinking=False) -> Sample:
    parts: list[Part] = [talk.text_part(utterance.text)]
    if conversation.pending:
        parts = order(conversation.rng, conversation.pending, utterance.text)
    return conversation.sample(kind, conversation.turn(parts), utterance, thinking)


def _until(rng: Random, draw: Callable[[Random], Sample | None]) -> Sample:
    """Draw again until there is a question of the kind."""
    while (sample := draw(rng)) is None:
        pass
    return sample


def plain(
    kind: str,
    pictures: tuple[int, int],
    kinds: tuple[str, ...] | None = None,
    videos: int = 0,
    fits: Callable[[Question], bool] = lambda question: True,
) -> Maker:
    """Plain wordings, media first, about as many pictures or clips as given."""

    def draw(rng: Random) -> Sample | None:
        conversation = Conversation(rng)
        conversation.show(rng.randint(*pictures), videos)
        question = _choose(conversation, kinds or (kind,), fits=fits)
        return None if question is None else _ask(conversation, kind, conversation.word(question, plain=True))

    return lambda rng: _until(rng, draw)


def ordered(kind: str, order: Callable[[Random, list[Part], str], list[Part]]) -> Maker:
    """Any question about any media in an order of text and media."""

    def draw(rng: Random) -> Sample | None:
        conversation = Conversation(rng)
        show_any(conversation)
        question = _choose(conversation)
        return None if question is None else _ask(conversation, kind, conversation.word(question), order)

    return lambda rng: _until(rng, draw)


def turned(kind: str, turns: int) -> Maker:
    """Any question in a later turn, after turns of any kind and order."""

    def draw(rng: Random) -> Sample | None:
        conversation = _history(rng, turns - 1)
        if rng.random() < 0.3:
            show_any(conversation)
        question = _choose(conversation)
        return None if question is None else _ask(conversation, kind, conversation.word(question))

    return lambda rng: _until(rng, draw)


def _history(rng: Random, turns: int) -> Conversation:
    conversation = Conversation(rng)
    for turn in range(turns):
        if turn == 0 or rng.random() < 0.3:
            show_any(conversation)
        utterance = talk.any_utterance(conversation, conversation.questions())
        message = _ask(conversation, "", utterance, rng.choice(talk.ORDERS)).messages[-1]
        conversation.answered(message, utterance.answer, utterance.question)
    return conversation


def each_second(rng: Random) -> Sample:
    """When something appears in a clip of one frame a second: the order of frames tells it without the drawn times."""

    def draw(rng: Random) -> Sample | None:
        conversation = Conversation(rng)
        conversation.show(0, 1)
        question = _choose(conversation, ("when",)) if conversation.videos[0].fps == 1 else None
        return None if question is None else _ask(conversation, "each-second", conversation.word(question, plain=True))

    return _until(rng, draw)


def _picture_of_two(rng: Random) -> Picture:
    """Return a picture of two things, unlike in shape and colour, in three rows and columns."""
    while True:
        picture = draw_picture(rng)
        looks = {thing.shape for thing in picture.things} | {thing.colour for thing in picture.things}
        if picture.cells == (3, 3) and len(picture.things) == 2 and len(looks) == 4:
            return picture


def picture_then_clip(rng: Random) -> Sample:
    """A plain question about a picture, then one about a moving clip, or about the picture's other thing."""
    conversation = Conversation(rng, Source(_picture_of_two, lambda rng: draw_moving(rng, rng.choice((3, 4, 5, 6)))))
    conversation.show(1)
    first, other = rng.sample([q for q in conversation.questions() if q.kind == "colour"], 2)
    message = _ask(conversation, "", conversation.word(first, plain=True)).messages[-1]
    conversation.answered(message, first.answer, first)
    conversation.show(0, 1)
    asked = [q for q in conversation.questions() if q.kind in ("direction", "mover")]
    utterance = conversation.word(rng.choice([*asked, other]), plain=True)
    return _ask(conversation, "picture-then-clip", utterance)


def earlier_picture(rng: Random) -> Sample:
    """A question about a picture of an earlier turn, by its number, after a newer one."""

    def draw(rng: Random) -> Sample | None:
        conversation = Conversation(rng)
        for _ in range(2):
            conversation.show(1)
            question = _choose(conversation, about=conversation.pictures[-1])
            message = _ask(conversation, "", conversation.word(question)).messages[-1]
            conversation.answered(message, question.answer, question)
        question = _choose(conversation, about=conversation.pictures[0])
        return _ask(conversation, "earlier-picture", conversation.word(question))

    return _until(rng, draw)


def after_system(kind: str, sentences: tuple[int, int], pool: tuple[str, ...] = SYSTEMS) -> Maker:
    """Any question after a system prompt of so many sentences."""

    def draw(rng: Random) -> Sample | None:
        conversation = Conversation(rng)
        conversation.system(rng.randint(*sentences), pool)
        show_any(conversation)
        question = _choose(conversation)
        return None if question is None else _ask(conversation, kind, conversation.word(question))

    return lambda rng: _until(rng, draw)


def worded(kind: str, unseen: bool = False, varied: bool = False, sentence: bool = False) -> Maker:
    """Any wording of a question about any media: trained ones, unseen ones, as people type, with a sentence wanted."""

    def draw(rng: Random) -> Sample | None:
        conversation = Conversation(rng)
        show_any(conversation)
        question = _choose(conversation)
        if question is None or ((sentence or unseen) and question.kind == "json"):
            return None
        if sentence:
            utterance = conversation.in_a_sentence(question)
        else:
            utterance = conversation.word(question, unseen=unseen)
        if varied:
            utterance = replace(utterance, text=typed(rng, utterance))
        return _ask(conversation, kind, utterance)

    return lambda rng: _until(rng, draw)


def said(kind: str, say: Callable[[Random], Utterance]) -> Maker:
    """Something that no picture answers; half of the time a picture was shown before."""

    def draw(rng: Random) -> Sample:
        conversation = _history(rng, 1) if kind != "missing" and rng.random() < 0.5 else Conversation(rng)
        return _ask(conversation, kind, say(rng))

    return draw


def no_shapes(rng: Random) -> Sample:
    """A plain question about a picture that shows no shapes."""
    picture = replace(draw_picture(rng), things=())
    conversation = Conversation(rng, Source(lambda _: picture))
    conversation.show(1)
    return _ask(conversation, "no-shapes", conversation.word(_choose(conversation), plain=True))


def plain_sides(rng: Random) -> Sample:
    return _ask(Conversation(rng), "text", talk.sides(rng, plain=True))


def thinking(rng: Random) -> Sample:
    def draw(rng: Random) -> Sample | None:
        conversation = _history(rng, rng.choice((0, 0, 1)))
        show_any(conversation)
        question = _choose(conversation)
        return None if question is None else _ask(conversation, "thinking", conversation.word(question), thinking=True)

    return _until(rng, draw)


def tools(kind: str, usual: bool) -> Maker:
    """A call, or the answer after one; the tools have their usual names, or some tool or property has another."""

    def draw(rng: Random) -> Sample | None:
        samples = [sample for sample in tool_conversation(rng, Source()) if sample.kind == "tools"]
        if not samples or all(map(is_usual, samples[0].tools)) != usual:
            return None
        return replace(rng.choice(samples), kind=kind)

    return lambda rng: _until(rng, draw)


def follow_up(rng: Random) -> Sample:
    """A question in a later turn that names only what is new in it: "And the square?"."""

    def draw(rng: Random) -> Sample | None:
        conversation = _history(rng, rng.choice((1, 1, 2)))
        utterance = conversation.follow_up([*conversation.questions(), *about_sides()])
        return None if utterance is None else _ask(conversation, "follow-up", utterance)

    return _until(rng, draw)


def in_short(rng: Random) -> Sample:
    """What goes on from an answer in a few words: "Which ones?", "As JSON, please."."""
    return replace(rng.choice(short_lesson(rng, Source())), kind="in-short")


def one_of_two(rng: Random) -> Sample:
    """Which of two colours a thing of one picture has."""

    def draw(rng: Random) -> Sample | None:
        conversation = Conversation(rng)
        conversation.show(1)
        said = [utterance for question in conversation.questions() if (utterance := either(rng, question))]
        return _ask(conversation, "one-of-two", rng.choice(said)) if said else None

    return _until(rng, draw)


def beyond(rng: Random) -> Sample:
    """A question about a picture that is not there, after one to three that are."""
    conversation = Conversation(rng)
    conversation.show(rng.randint(1, 3))
    return _ask(conversation, "beyond", talk.ask_beyond(conversation))


def missing(rng: Random) -> Utterance:
    return talk.nothing_shown(rng, videos=rng.random() < 0.3)
