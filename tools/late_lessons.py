"""Lessons of the later phases: forms of an answer, pictures that are not there, what goes on from an answer, openings.

The first phase learns these late or not at all: JSON as an array or as an object, sentences, "Which ones?", "When?".
The last one repeats what is said first beside a picture, "what do you see?", which small talk resembles.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from conversations import (
    Conversation,
    Sample,
    Source,
    Utterance,
    any_question,
    ask_beyond,
    small_talk,
    text_part,
    unknown,
)
from curriculum import typed
from questions import Question
from scenes import COLOURS, Picture

EITHER = (
    "Is the {thing} {a} or {b}?", "Is it a {a} {thing} or a {b} {thing}?", "Is the {thing} {a}, or is it {b}?",
    "{a} or {b}: which colour is the {thing}?", "Does the {thing} look {a} or {b}?",
    "Which is the colour of the {thing}, {a} or {b}?", "Is the colour of the {thing} {a} or {b}?",
)  # fmt: skip
SAY_IT = (
    "In a sentence, please.", "Answer in a sentence.", "Say it in a sentence.", "Please answer in a full sentence.",
    "And in a sentence?", "As a sentence.", "Write it as a sentence.", "Now in a full sentence.",
)  # fmt: skip
AS_JSON = (
    "As JSON, please.", "Now as JSON.", "Give me that as JSON.", "Can you give me that as JSON?", "And as JSON?",
    "Write that as JSON.", "Return it as JSON.", "Please answer as JSON.",
)  # fmt: skip
WHICH_ONES = (
    "Which ones?", "Which are they?", "Which?", "What are they?", "And which ones?", "Name them.", "List them.",
    "Tell me which ones.",
)  # fmt: skip
WHICH_WAY = (
    "Which way?", "In which direction?", "And which way?", "Where does it go?", "Which direction?", "Where to?",
    "In what direction?", "And in which direction?",
)  # fmt: skip
OPENINGS: dict[str, tuple[str, ...]] = {
    "describe": (
        "What do you see?", "What can you see?", "What do you see here?", "What's in it?",
        "List everything you can see.", "Tell me what you can see.", "What is there?", "What are you seeing?",
        "Say what you see.", "Describe it, please.",
    ),
    "happens": (
        "What do you see?", "What can you see?", "What happens in it?", "What do you see here?", "Say what you see.",
        "Tell me what you can see.", "What is there?", "Describe it, please.",
    ),
    "count": ("How many can you see?", "Count the shapes, please.", "How many things?", "Count the things.", "Count."),
}  # fmt: skip
WHEN = ("When?", "And when?", "At what time?", "When does it appear?", "When is that?", "At which second?")
# As it is, in lower case, in lower case without its last mark, in upper case.
TYPED: tuple[Callable[[str], str], ...] = (
    str, str, str.lower, str.lower, lambda text: text.lower().rstrip("?.!"), str.upper,
)  # fmt: skip


def form_lesson(rng: Random, source: Source) -> list[Sample]:
    """Return questions about one picture whose answers have a form: JSON, a sentence, one of two colours."""
    conversation = Conversation(rng, source)
    conversation.show(1)
    questions = conversation.questions()
    said = [conversation.word(q, plain=rng.random() < 0.4) for q in questions if q.kind == "json"]
    sentences = [q for q in questions if q.sentence]
    said += [conversation.in_a_sentence(q) for q in rng.sample(sentences, min(3, len(sentences)))]
    said += [utterance for q in questions if (utterance := either(rng, q))][:2]
    return _ask_each(conversation, said)


def beyond_lesson(rng: Random, source: Source) -> list[Sample]:
    """Return questions about one to three pictures, and as many about a picture after the last of them."""
    conversation = Conversation(rng, source)
    conversation.show(rng.choice((1, 2, 2, 3)))
    questions = conversation.questions()
    said = [conversation.word(any_question(conversation, questions)) for _ in range(3)]
    return _ask_each(conversation, said + [ask_beyond(conversation) for _ in range(3)])


def short_lesson(rng: Random, source: Source) -> list[Sample]:
    """Return what goes on, in a few words, from the answer to a first question."""
    said: list[Utterance] = []
    while not said:
        conversation = Conversation(rng, source)
        conversation.show(*rng.choice(((1, 0), (1, 0), (2, 0), (0, 1))))
        question = any_question(conversation, conversation.questions())
        message = conversation.turn([*conversation.pending, text_part(typed(rng, conversation.word(question)))])
        conversation.answered(message, question.answer, question)
        said = in_short(conversation)
    return _ask_each(conversation, said)


def opening_lesson(rng: Random, source: Source) -> list[Sample]:
    """Return first messages beside one picture or clip that do not name it, as people type them, and two of talk."""
    conversation = Conversation(rng, source)
    conversation.show(*rng.choice(((1, 0), (1, 0), (1, 0), (0, 1))))
    said = []
    for question in conversation.questions():
        forms = OPENINGS.get(question.wording, ())
        text = rng.choice(forms) if forms and rng.random() < 0.6 else question.bare_text(rng)
        if text is not None:
            said.append(
                Utterance(question.kind, text, question.answer, question.thought or question.sentence, question)
            )
    most = [utterance for utterance in said if utterance.question.wording in OPENINGS]
    others = [utterance for utterance in said if utterance not in most]
    chosen = [*most, *rng.sample(others, min(2, len(others))), small_talk(rng), unknown(rng)]
    return _ask_each(conversation, [replace(one, text=rng.choice(TYPED)(one.text)) for one in chosen])


def in_short(conversation: Conversation) -> list[Utterance]:
    """Return what can be asked in a few words after the question that was answered last, each in a random wording."""
    rng, last = conversation.rng, conversation.asked
    if last is None or last.target is None:
        return []
    about = [question for question in conversation.questions() if question.target is last.target]
    found: list[tuple[tuple[str, ...], str, Question]] = []
    if last.sentence:
        found.append((SAY_IT, last.sentence, last))
    if isinstance(last.target, Picture) and last.kind != "json":
        found += [(AS_JSON, q.answer, q) for q in about if q.wording == "json"]
    if last.wording == "count" and last.things:
        found += [(WHICH_ONES, q.answer, q) for q in about if q.wording == "describe"]
    if last.wording == "count colour" and last.things:
        found += [(WHICH_ONES, q.answer, q) for q in about if q.wording == "which are" and q.slots == last.slots]
    if last.wording == "mover":
        found += [(WHICH_WAY, q.answer, q) for q in about if q.wording == "direction"]
    if last.wording in ("happens", "exists", "colour") and len(last.things) == 1:
        found += [(WHEN, q.answer, q) for q in about if q.wording == "when" and q.things == last.things]
    said = [
        Utterance("sentence" if forms is SAY_IT else q.kind, rng.choice(forms), answer, q.thought or q.sentence, q)
        for forms, answer, q in found
    ]
    follow_up = conversation.follow_up(about)
    return [*said, follow_up] if follow_up else said


def either(rng: Random, question: Question) -> Utterance | None:
    """Return the question which of two colours a thing has; None unless this one asks for a thing's only colour."""
    if question.kind != "colour" or question.answer not in COLOURS:
        return None
    other = rng.choice([colour for colour in COLOURS if colour != question.answer])
    a, b = rng.sample((question.answer, other), 2)
    text = rng.choice(EITHER).format(thing=question.slots["thing"], a=a, b=b)
    return Utterance("colour", text[0].upper() + text[1:], question.answer, question.sentence, question)


def _ask_each(conversation: Conversation, said: list[Utterance]) -> list[Sample]:
    """Return a sample for each of the utterances, of one turn that shows what is pending."""
    rng = conversation.rng
    samples = []
    for utterance in said:
        text = typed(rng, utterance) if rng.random() < 0.5 else utterance.text
        message = conversation.turn([*conversation.pending, text_part(text)])
        samples.append(conversation.sample(utterance.kind, message, utterance))
    return samples
