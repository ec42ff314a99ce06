"""Conversations to train on: lessons first, then several turns, system prompts, thoughts, and tools.

A conversation yields one sample for each question that is asked in it; those of one turn differ in the question alone.
"""

import json
from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import mini_words as words
from conversations import (
    MAX_PICTURES,
    MAX_VIDEOS,
    ORDERS,
    Conversation,
    Message,
    Sample,
    Source,
    Utterance,
    any_utterance,
    fill,
    media_first,
    text_part,
    vary,
)
from questions import Question, about_picture
from scenes import draw_appearing

LESSON_QUESTIONS = 6  # at most, about one picture
BRANCHES = {1: 5, 2: 3, 3: 3, 5: 2}  # questions of each turn by the number of turns


def first_lesson(rng: Random, source: Source) -> list[Sample]:
    """Return plain questions about shape, colour and place in one picture: where training begins."""
    conversation = Conversation(rng, source)
    conversation.show(1)
    kinds = ("shape", "colour", "where")
    return ask_all(conversation, [q for q in conversation.questions() if q.kind in kinds], plain=True)


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


def clock_lesson(rng: Random, source: Source) -> list[Sample]:
    """Return a question about the time of the later of two frames: how digits are learned to be read."""
    conversation = Conversation(rng, replace(source, video=lambda rng: draw_appearing(rng, 2)))
    conversation.show(0, 1)
    return ask_all(conversation, [q for q in conversation.questions() if q.kind == "clock"], plain=True)


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
    """Return the samples of one conversation of one to five turns, each turn asked in several ways."""
    conversation = Conversation(rng, source)
    if rng.random() < 0.3:
        conversation.system(rng.choice((1, 1, 1, 1, 2, 3, 6)))
    samples: list[Sample] = []
    turns = rng.choice((1, 1, 1, 1, 2, 2, 3, 5))
    for turn in range(turns):
        if rng.random() < (0.9 if turn == 0 else 0.3):
            show_any(conversation)
        order = rng.choice((media_first, *ORDERS))
        seed = rng.random()
        questions = conversation.questions()
        asked = [any_utterance(conversation, questions) for _ in range(BRANCHES[turns] if conversation.last else 2)]
        for utterance in asked:
            text = vary(rng, utterance.text)
            parts = order(Random(seed), conversation.pending, text) if conversation.pending else [text_part(text)]
            message = conversation.turn(parts)
            thinking = rng.random() < 0.2
            samples.append(conversation.sample(utterance.kind, message, utterance, thinking))
        said = asked[-1].answer if rng.random() < 0.9 else rng.choice(asked).answer
        conversation.answered(message, said)
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


def tool(name: str, description: str, **properties: str) -> dict[str, Any]:
    """Return a tool's description as the OpenAI API takes it; properties by name and type."""
    schema = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


COUNT_SHAPES = tool("count_shapes", "Count the shapes in a picture.", picture="integer")
ZOOM = tool("zoom", "Zoom in on a place in a picture.", picture="integer", place="string")


def call(name: str, **arguments: Any) -> str:
    """Return a tool call as the model writes it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>\n"


def tool_conversation(rng: Random, source: Source) -> list[Sample]:
    """Return samples of a conversation in which tools are offered: calls, answers after a call, and neither."""
    conversation = Conversation(rng, source)
    others = [
        tool(f"{rng.choice(words.VERBS)}_{rng.choice(words.NOUNS)}", fill(rng, "{verb} the {noun}"), text="string")
    ]
    offered = [t for t in (COUNT_SHAPES, ZOOM) if rng.random() < 0.8]
    tools = [*offered, *others] if rng.random() < 0.4 or not offered else offered
    rng.shuffle(tools)
    conversation.show(rng.choice((1, 1, 2)))
    picture = rng.choice(conversation.pictures)
    index = conversation.pictures.index(picture) + 1
    seed = rng.random()
    samples = []
    order = rng.choice((media_first, *ORDERS))

    def add(utterance: Utterance, answer: str, kind: str) -> Message:
        message = conversation.turn(order(Random(seed), conversation.pending, vary(rng, utterance.text)))
        samples.append(Sample(kind, [*conversation.messages, message], answer, tools=tuple(tools)))
        return message

    everything = about_picture(rng, picture)
    count = next(q for q in everything if q.wording == "count")
    if COUNT_SHAPES in offered:
        utterance = conversation.word(count)
        arguments = {"picture": index}
        message = add(utterance, call("count_shapes", **arguments), "tools")
        made = {"role": "assistant", "content": "", "tool_calls": [_made("count_shapes", arguments)]}
        messages = [*conversation.messages, message, made, {"role": "tool", "content": count.answer}]
        samples.append(Sample("tools", messages, count.answer, tools=tuple(tools)))
    if ZOOM in offered and (where := [q for q in everything if q.kind == "where"]):
        question = rng.choice(where)
        zoom = Question("tools", "zoom", question.slots, question.answer, "", picture)
        utterance = conversation.word(zoom)
        add(utterance, call("zoom", picture=index, place=question.answer), "tools")
    questions = conversation.questions()
    for _ in range(2):
        utterance = any_utterance(conversation, questions)
        if utterance.kind != "count" and "many" not in utterance.text and "ount" not in utterance.text:
            add(utterance, utterance.answer, "untouched")
    return samples


def _made(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}
