"""Conversations to train on: single questions first, then several turns, system prompts, thoughts, and tools.

A conversation yields one sample for each question that is asked in it; those of one turn differ in the question alone.
"""

import json
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

LESSON_QUESTIONS = 6  # at most, about one picture
BRANCHES = {1: 5, 2: 3, 3: 3, 5: 2}  # questions of each turn by the number of turns


def first_lesson(rng: Random, source: Source) -> list[Sample]:
    """Return plain questions about shape, colour and place in one picture: where training begins."""
    return lesson(rng, source, pictures_only=True, kinds=("shape", "colour", "where"))


def lesson(
    rng: Random, source: Source, pictures_only: bool = False, kinds: tuple[str, ...] | None = None
) -> list[Sample]:
    """Return plain questions about what is shown in one turn, media first."""
    conversation = Conversation(rng, source)
    if pictures_only:
        conversation.show(1)
    else:
        show_any(conversation)
    samples = []
    questions = [question for question in conversation.questions() if kinds is None or question.kind in kinds]
    for question in rng.sample(questions, min(LESSON_QUESTIONS, len(questions))):
        utterance = conversation.word(question, plain=True)
        message = conversation.turn([*conversation.pending, text_part(utterance.text)])
        samples.append(conversation.sample(utterance.kind, message, utterance))
    return samples


def converse(rng: Random, source: Source, forms: bool = False) -> list[Sample]:
    """Return the samples of one conversation of one to five turns, each turn asked in several ways.

    Args:
        rng: Makes every choice.
        source: Gives pictures and clips.
        forms: Whether answers come in the longer forms too: JSON, and after a thought.
    """
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
        questions = [question for question in conversation.questions() if forms or question.kind != "json"]
        asked = [any_utterance(conversation, questions) for _ in range(BRANCHES[turns] if conversation.last else 2)]
        for utterance in asked:
            text = vary(rng, utterance.text)
            parts = order(Random(seed), conversation.pending, text) if conversation.pending else [text_part(text)]
            message = conversation.turn(parts)
            thinking = forms and rng.random() < 0.2
            samples.append(conversation.sample(utterance.kind, message, utterance, thinking))
        said = asked[-1].answer if rng.random() < 0.9 else rng.choice(asked).answer
        conversation.answered(message, said)
    return samples


def converse_in_forms(rng: Random, source: Source) -> list[Sample]:
    """Return the samples of a conversation with JSON and thoughts."""
    return converse(rng, source, forms=True)


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
