"""Conversations to train on: lessons first, then several turns, system prompts, thoughts, and tools.

A conversation yields one sample for each question that is asked in it; those of one turn differ in the question alone.
"""

from collections import Counter
from dataclasses import replace
from random import Random

from conversations import (
    MAX_PICTURES,
    MAX_VIDEOS,
    ORDERS,
    Conversation,
    Message,
    Sample,
    Source,
    Utterance,
    any_question,
    any_utterance,
    media_first,
    text_part,
    vary,
)
from mini_tools import DONE, call, count_result, find, made, offer, offer_other
from picture_questions import about_picture
from questions import Question, about_sides
from scenes import PLACES

LESSON_QUESTIONS = 7  # at most, about one picture
LONG_ANSWERS = ("sentence", "json")  # kinds whose answers may not be asked to be short
BRANCHES = {1: 5, 2: 3, 3: 3, 5: 2, 8: 2}  # questions of each turn by the number of turns
LATE_QUESTIONS = 6  # about what earlier turns showed


def typed(rng: Random, utterance: Utterance) -> str:
    """Return what is said as people type it, without asking for brevity where the answer has to be long."""
    return vary(rng, utterance.text, brief=utterance.kind not in LONG_ANSWERS)


def first_lesson(rng: Random, source: Source) -> list[Sample]:
    """Return plain questions about shape, colour and place in one picture: where training begins."""
    questions: list[Question] = []
    while not questions:
        conversation = Conversation(rng, source)
        conversation.show(1)
        questions = [q for q in conversation.questions() if q.kind in ("shape", "colour", "where")]
    return ask_all(conversation, questions, plain=True)


def lesson(rng: Random, source: Source) -> list[Sample]:
    """Return questions about one picture."""
    conversation = Conversation(rng, source)
    conversation.show(1)
    return ask_all(conversation, conversation.questions(), plain=rng.random() < 0.5)


def pair_lesson(rng: Random, source: Source) -> list[Sample]:
    """Return questions about two to four pictures, half of them questions that compare."""
    conversation = Conversation(rng, source)
    conversation.show(rng.choice((2, 2, 2, 3, 4)))
    return ask_all(conversation, conversation.questions(), plain=rng.random() < 0.5, often=("which", "more"))


def clip_lesson(rng: Random, source: Source) -> list[Sample]:
    """Return questions about one clip, half of them about the time that is drawn on its frames."""
    conversation = Conversation(rng, source)
    conversation.show(0, 1)
    return ask_all(conversation, conversation.questions(), plain=rng.random() < 0.5, often=("clock",))


def happens_lesson(rng: Random, source: Source) -> list[Sample]:
    """Return questions about one clip, among them what happens in it where things appear, in several wordings."""
    conversation = Conversation(rng, source)
    while not any(video.late for video in conversation.videos):
        conversation = Conversation(rng, source)
        conversation.show(0, 1)
    questions = [q for q in conversation.questions() if q.kind in ("happens", "when", "clip-colour")]
    questions += [q for q in questions if q.kind == "happens"]
    return ask_all(conversation, questions, plain=rng.random() < 0.3)


def ask_all(
    conversation: Conversation, questions: list[Question], plain: bool, often: tuple[str, ...] = ()
) -> list[Sample]:
    """Return a sample for each of some of the questions, media first.

    Args:
        conversation: Shows something and has no turn yet.
        questions: What can be asked.
        plain: Whether in plain wordings, else in any.
        often: Kinds that are asked up to three times before others are.
    """
    rng = conversation.rng
    rng.shuffle(questions)
    seen: Counter[str] = Counter()
    turns = []  # kinds take turns, so that those with few questions are asked as often
    for question in questions:
        turns.append((seen[question.kind] - (2 if question.kind in often else 0), rng.random(), question))
        seen[question.kind] += 1
    asked = [question for *_, question in sorted(turns, key=lambda turn: turn[:2])][:LESSON_QUESTIONS]
    samples = []
    for question in asked:
        utterance = conversation.word(question, plain)
        message = conversation.turn([*conversation.pending, text_part(utterance.text)])
        samples.append(conversation.sample(utterance.kind, message, utterance))
    return samples


def converse(rng: Random, source: Source) -> list[Sample]:
    """Return the samples of one conversation of one to eight turns, each turn asked in several ways."""
    conversation = Conversation(rng, source)
    if rng.random() < 0.3:
        conversation.system(rng.choice((1, 1, 1, 1, 2, 3, 6)))
    samples: list[Sample] = []
    turns = rng.choice((1, 1, 1, 1, 2, 2, 3, 5) * 2 + (8,))
    for turn in range(turns):
        if rng.random() < (0.9 if turn == 0 else 0.3):
            show_any(conversation)
        order = rng.choice((media_first, *ORDERS))
        seed = rng.random()
        questions = conversation.questions()
        asked = [any_utterance(conversation, questions) for _ in range(BRANCHES[turns] if conversation.last else 2)]
        for utterance in asked:
            text = typed(rng, utterance)
            parts = order(Random(seed), conversation.pending, text) if conversation.pending else [text_part(text)]
            message = conversation.turn(parts)
            thinking = rng.random() < 0.2
            samples.append(conversation.sample(utterance.kind, message, utterance, thinking))
        said = asked[-1].answer if rng.random() < 0.9 else rng.choice(asked).answer
        conversation.answered(message, said, asked[-1].question)
    return samples


def look_back(rng: Random, source: Source) -> list[Sample]:
    """Return questions of a later turn, most of them about what earlier turns showed."""
    conversation = Conversation(rng, source)
    if rng.random() < 0.15:
        conversation.system(1)
    for turn in range(rng.choice((1, 2, 2, 2, 3, 4))):
        if turn == 0 or rng.random() < 0.6:
            if rng.random() < 0.6 and len(conversation.pictures) < MAX_PICTURES:
                conversation.show(1)
            else:
                show_any(conversation)
        said = any_utterance(conversation, conversation.questions())
        parts = rng.choice((media_first, *ORDERS))(rng, conversation.pending, said.text)
        message = conversation.turn(parts if conversation.pending else [text_part(said.text)])
        conversation.answered(message, said.answer, said.question)
    if rng.random() < 0.2:
        show_any(conversation)
    samples = []
    questions = conversation.questions()
    if follow_up := conversation.follow_up([*questions, *about_sides()]):
        message = conversation.turn([text_part(typed(rng, follow_up))])
        samples.append(conversation.sample(follow_up.kind, message, follow_up))
    for _ in range(LATE_QUESTIONS if questions else 0):
        question = any_question(conversation, questions, newest=0.1)
        in_a_sentence = question.sentence and rng.random() < 0.1
        utterance = conversation.in_a_sentence(question) if in_a_sentence else conversation.word(question)
        text = typed(rng, utterance) if rng.random() < 0.5 else utterance.text
        message = conversation.turn([*conversation.pending, text_part(text.upper() if rng.random() < 0.05 else text)])
        samples.append(conversation.sample(utterance.kind, message, utterance, thinking=rng.random() < 0.3))
    return samples


def show_any(conversation: Conversation) -> None:
    """Show one to four new pictures, a clip, or both, as far as a conversation may hold."""
    pictures, videos = conversation.rng.choice(
        ((1, 0),) * 9 + ((2, 0),) * 3 + ((3, 0), (4, 0)) + ((0, 1),) * 4 + ((1, 1),)
    )
    pictures = min(pictures, MAX_PICTURES - len(conversation.pictures))
    videos = min(videos, MAX_VIDEOS - len(conversation.videos))
    if pictures + videos:
        conversation.show(pictures, videos)


def tool_conversation(rng: Random, source: Source) -> list[Sample]:
    """Return samples of a conversation in which tools are offered: calls, answers after a call, and neither."""
    offered = [offer(rng, purpose) for purpose in ("count_shapes", "zoom") if rng.random() < 0.8]
    if rng.random() < 0.4 or not offered:
        offered += [offer_other(rng) for _ in range(rng.choice((1, 1, 2)))]
    rng.shuffle(offered)
    conversation = Conversation(rng, source)
    if rng.random() < 0.15:
        conversation.system(rng.choice((1, 1, 2)))
    conversation.show(rng.choice((1, 1, 2)))
    tools = tuple(tool.description for tool in offered)
    seed = rng.random()
    order = rng.choice((media_first, *ORDERS))

    def ask(utterance: Utterance, kind: str) -> Sample:
        text = typed(rng, utterance)
        message = conversation.turn(order(Random(seed), conversation.pending, text))
        return replace(conversation.sample(kind, message, utterance), tools=tools)

    picture = rng.choice(conversation.pictures)
    index = conversation.pictures.index(picture) + 1
    everything = about_picture(rng, picture)
    samples = []
    counter = find(offered, "count_shapes")
    if counter:
        count = next(q for q in everything if q.wording == "count")
        arguments = counter.arguments(picture=index)
        called = replace(ask(conversation.word(count), "tools"), answer=call(counter.name, arguments))
        samples += [
            called,
            _after(called, made(counter.name, arguments), count_result(rng, count.answer), count.answer),
        ]
    zoomer = find(offered, "zoom")
    if zoomer and (where := [q for q in everything if q.kind == "where" and q.answer in PLACES]):
        zoom = replace(rng.choice(where), kind="tools", wording="zoom", sentence="")
        arguments = zoomer.arguments(picture=index, place=zoom.answer)
        called = replace(ask(conversation.word(zoom), "tools"), answer=call(zoomer.name, arguments))
        after = _after(called, made(zoomer.name, arguments), rng.choice(DONE), "done")
        samples += [called, replace(after, question=None)]
    questions = conversation.questions()
    for _ in range(2):
        utterance = any_utterance(conversation, questions)
        if not (counter and _counts(utterance)):
            samples.append(ask(utterance, "untouched"))
    return samples


def _after(called: Sample, turn: Message, result: str, answer: str) -> Sample:
    """Return the sample that follows a call: the tool's result, and the answer to it."""
    return replace(called, messages=[*called.messages, turn, {"role": "tool", "content": result}], answer=answer)


def _counts(utterance: Utterance) -> bool:
    """Return whether a tool that counts shapes might be called for this."""
    question = utterance.question
    return (question is not None and "count" in question.wording) or any(
        word in utterance.text for word in ("many", "ount", "umber")
    )
