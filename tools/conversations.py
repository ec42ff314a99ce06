"""Conversations about drawn pictures and clips: any order of text and media, several turns, system prompts, tools.

`curriculum.py` draws training conversations, `heldout.py` those that accuracy is measured on.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import mini_sayings as words
from clip_questions import about_video
from mini_unknown import UNKNOWN_ANSWER, fill, unknown_text
from mini_words import ALSO_IN, FOLLOW_UPS, OF_IT
from picture_questions import about_picture
from questions import ORDINALS, Question, about_number, about_pictures, about_sides, fill_slots, references
from scenes import Picture, Video, draw_picture, draw_video

Part = dict[str, Any]
Message = dict[str, Any]
MAX_PICTURES = 4
MAX_VIDEOS = 2
BARE = 0.25  # of the questions that need not name their picture or clip do not mention one at all
# Nothing but a clip answers these.
CLIP_WORDINGS = ("direction", "mover", "when", "clock", "happens")


@dataclass(frozen=True)
class Sample:
    """A conversation in chat-message form that ends in a user's or a tool's turn, and the exact answer to it.

    Attributes:
        thinking: Whether the prompt asks for a thought first; the answer then begins with it.
        tools: The tools that are offered, as an API takes them.
        question: What the user asks about shapes, if that is what is answered.
    """

    kind: str
    messages: list[Message]
    answer: str
    thinking: bool = False
    tools: tuple[dict[str, Any], ...] = ()
    question: Question | None = None


def media_parts(sample: Sample, *kinds: str) -> list[Any]:
    """Return the pictures ("image") or clips ("video") of a conversation, in order; paths where they are files."""
    parts = [p for turn in sample.messages if isinstance(turn["content"], list) for p in turn["content"]]
    return [part[part["type"]] if part["type"] in part else part["path"] for part in parts if part["type"] in kinds]


@dataclass(frozen=True)
class Source:
    """Where conversations take their pictures and clips from."""

    picture: Callable[[Random], Picture] = draw_picture
    video: Callable[[Random], Video] = draw_video


def text_part(text: str) -> Part:
    return {"type": "text", "text": text}


def media_first(rng: Random, media: list[Part], text: str) -> list[Part]:
    return [*media, text_part(text)]


def text_first(rng: Random, media: list[Part], text: str) -> list[Part]:
    return [text_part(text + rng.choice(("", "", "\n", " "))), *media]


def between(rng: Random, media: list[Part], text: str) -> list[Part]:
    """The text stands between two of the media; after a single one, before a closing text."""
    if len(media) < 2:
        return [*media, text_part(text), text_part(" " + rng.choice(words.CLOSERS))]
    cut = rng.randrange(1, len(media))
    return [*media[:cut], text_part(text), *media[cut:]]


def several_texts(rng: Random, media: list[Part], text: str) -> list[Part]:
    """A text before the media and another after them; the question is one of the two."""
    gap = rng.choice(("", "\n", " "))
    if rng.random() < 0.5:
        return [text_part(rng.choice(words.PREAMBLES) + gap), *media, text_part(text)]
    return [text_part(text + gap), *media, text_part(rng.choice((*words.CLOSERS, *words.PREAMBLES)))]


ORDERS = (media_first, text_first, between, several_texts)


def system_prompt(rng: Random, sentences: int, pool: tuple[str, ...]) -> str:
    return " ".join(fill(rng, rng.choice(pool)) for _ in range(sentences))


def vary(rng: Random, text: str, brief: bool = True) -> str:
    """Write a text as people type: in lower case, without its last mark, with words before it or after it.

    Args:
        rng: Chooses.
        text: What is asked or said.
        brief: Whether a short answer may be asked for.
    """
    chance = rng.random()
    if chance < 0.12:
        opener = rng.choice(words.OPENERS)
        text = f"{opener} {text[:1].lower() + text[1:] if rng.random() < 0.6 else text}"
    elif chance < 0.24:
        text = f"{text} {rng.choice(words.POLITE_ENDINGS + (words.BRIEF_ENDINGS if brief else ()))}"
    chance = rng.random()
    if chance < 0.55:
        return text
    if chance < 0.70:
        return text.lower()
    if chance < 0.80:
        return text.rstrip("?.!") or text
    if chance < 0.88:
        return text.lower().rstrip("?.!") or text
    if chance < 0.94:
        return f"Please: {text}" if chance < 0.91 else f"{text} Please."
    return text.upper() if chance < 0.95 else f"{text} "


@dataclass(frozen=True)
class Utterance:
    """What a user says, and the answer to it.

    Attributes:
        thought: What a thinking model writes before the answer.
        question: The question in it, if it asks about shapes.
    """

    kind: str
    text: str
    answer: str
    thought: str
    question: Question | None = None


def small_talk(rng: Random) -> Utterance:
    sayings, answer = rng.choice(words.TALK)
    return Utterance("talk", rng.choice(sayings), answer, "This is small talk.")


def unknown(rng: Random, unseen: bool = False) -> Utterance:
    """Return something that no shape answers."""
    kind = "unseen-unknown" if unseen else "unknown"
    return Utterance(kind, unknown_text(rng, unseen), UNKNOWN_ANSWER, "This is not about shapes.")


def sides(rng: Random, **wording: bool) -> Utterance:
    question = rng.choice(about_sides())
    return Utterance("text", question.text(rng, "", "", **wording), question.answer, question.sentence, question)


def nothing_shown(rng: Random, videos: bool) -> Utterance:
    """Ask about a picture or a clip that is not there."""
    if videos:
        questions = [q for q in about_video(rng, draw_video(rng)) if q.wording in CLIP_WORDINGS]
        missing = "clip"
    else:
        questions = about_picture(rng, draw_picture(rng))
        missing = "picture"
    question = rng.choice(questions)
    media = rng.choice(words.CLIP_NAMES if videos else words.PICTURE_NAMES)
    text = question.text(rng, rng.choice(("", f" in {media}")), media)
    if not videos and rng.random() < BARE:
        text = question.bare_text(rng) or text
    return Utterance("missing", text, f"I see no {missing}.", f"There is no {missing}.")


def ask_beyond(conversation: "Conversation") -> Utterance:
    """Ask about a picture after the last one."""
    rng = conversation.rng
    number = len(conversation.pictures) + rng.choice((1, 1, 1, 2))
    noun = rng.choice(("picture", "picture", "image"))
    media = rng.choice((f"{noun} {number}", f"the {ORDINALS[number - 1]} {noun}"))
    question = rng.choice(about_picture(rng, draw_picture(rng)))
    text = question.text(rng, f" in {media}", media)
    while media not in text:  # a wording that names no picture
        text = question.text(rng, f" in {media}", media)
    return Utterance("missing", text, f"I see no picture {number}.", f"There is no picture {number}.")


@dataclass
class Conversation:
    """A conversation that grows by turns.

    Attributes:
        messages: The turns so far.
        pending: Media that the next user turn shows.
        last: The media of the last turn that showed any.
        asked: The question that was answered last, if the last turn asked one about shapes.
    """

    rng: Random
    source: Source = field(default_factory=Source)
    messages: list[Message] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    videos: list[Video] = field(default_factory=list)
    pending: list[Part] = field(default_factory=list)
    last: list[Picture | Video] = field(default_factory=list)
    asked: Question | None = None

    def system(self, sentences: int, pool: tuple[str, ...] = words.SYSTEMS) -> None:
        self.messages.append({"role": "system", "content": system_prompt(self.rng, sentences, pool)})

    def show(self, pictures: int, videos: int = 0) -> None:
        """Put new media into the next user turn, in any order."""
        media: list[Picture | Video] = [self.source.picture(self.rng) for _ in range(pictures)]
        media += [self.source.video(self.rng) for _ in range(videos)]
        self.rng.shuffle(media)
        self.last = media
        self.pictures += [medium for medium in media if isinstance(medium, Picture)]
        self.videos += [medium for medium in media if isinstance(medium, Video)]
        self.pending = [
            {"type": "image", "image": medium} if isinstance(medium, Picture) else {"type": "video", "video": medium}
            for medium in media
        ]

    def questions(self) -> list[Question]:
        """Return all questions that can be asked now."""
        found = [question for picture in self.pictures for question in about_picture(self.rng, picture)]
        found += [question for video in self.videos for question in about_video(self.rng, video)]
        if self.pictures:
            found.append(about_number(self.pictures))
        if 2 <= len(self.pictures) <= MAX_PICTURES:
            found += about_pictures(self.rng, self.pictures)
        return found

    def word(self, question: Question, plain: bool = False, unseen: bool = False) -> Utterance:
        """Put a question into words that name its picture or clip where they must."""
        ref = ""
        media = "the picture"
        alone = len(self.last) == 1 and self.last[0] is question.target
        if question.target is not None:
            ref, media = references(self.rng, question.target, self.pictures, self.videos, alone)
            if plain:
                ref, media = self._plain_reference(question.target, alone)
        text = question.text(self.rng, ref, media, plain, unseen)
        if alone and self._needs_no_name(question) and not plain and not unseen and self.rng.random() < BARE:
            text = question.bare_text(self.rng) or text
        thought = question.thought or question.sentence
        return Utterance(question.kind, text, question.answer, thought, question)

    def _needs_no_name(self, question: Question) -> bool:
        """Return whether no name means its picture or clip: it is shown now, or no other was asked about last."""
        return bool(self.pending) or self.asked is None or self.asked.target in (None, question.target)

    def _plain_reference(self, target: Picture | Video, alone: bool) -> tuple[str, str]:
        group, noun = (self.pictures, "picture") if isinstance(target, Picture) else (self.videos, "video")
        if alone:
            return "", f"the {noun}"
        name = f"{noun} {next(number for number, medium in enumerate(group, 1) if medium is target)}"
        return f" in {name}", name

    def in_a_sentence(self, question: Question) -> Utterance:
        utterance = self.word(question)
        text = self.rng.choice(words.IN_A_SENTENCE).format(utterance.text)
        return Utterance("sentence", text, question.sentence, utterance.thought, question)

    def follow_up(self, questions: list[Question]) -> Utterance | None:
        """Return a question that names only what differs from the last one; None where there is none."""
        last = self.asked
        if last is None or self.pending:
            return None
        found = [(question, form) for question in questions if (form := self._short_form(last, question)) is not None]
        if not found:
            return None
        kinds = sorted({question.wording for question, _ in found})
        kind = self.rng.choice(kinds)
        question, text = self.rng.choice([(question, form) for question, form in found if question.wording == kind])
        return Utterance(question.kind, text, question.answer, question.thought or question.sentence, question)

    def _short_form(self, last: Question, question: Question) -> str | None:
        """Return what asks `question` right after `last`, if it can be asked in short."""
        forms: tuple[str, ...] = ()
        slots = question.slots
        if question.target is last.target and question.wording != last.wording:
            if len(last.things) == 1 and question.things == last.things:
                forms = OF_IT.get(question.wording, ())
        elif question.target is last.target and slots != last.slots:
            if not question.things or question.things != last.things:
                forms = FOLLOW_UPS.get(question.wording, ())
        elif isinstance(question.target, Picture) and isinstance(last.target, Picture) and slots == last.slots:
            if question.wording == last.wording and question.target is not last.target:
                _, media = references(self.rng, question.target, self.pictures, self.videos, alone=False)
                forms = ALSO_IN
                slots = slots | {"media": media}
        return fill_slots(self.rng.choice(forms), slots) if forms else None

    def turn(self, parts: list[Part]) -> Message:
        return {"role": "user", "content": parts}

    def sample(self, kind: str, message: Message, utterance: Utterance, thinking: bool = False) -> Sample:
        """Return the conversation so far with the user's turn, and the answer to it."""
        answer = f"\n{utterance.thought}\n</think>\n\n{utterance.answer}" if thinking else utterance.answer
        return Sample(kind, [*self.messages, message], answer, thinking, question=utterance.question)

    def answered(self, message: Message, answer: str, question: Question | None = None) -> None:
        """Go on to the next turn. question: the one that the message asks."""
        self.messages += [message, {"role": "assistant", "content": answer}]
        self.pending = []
        self.asked = question


def any_question(conversation: Conversation, questions: list[Question], newest: float = 0.6) -> Question:
    """Choose a kind among the questions that can be asked now, then one of it; mostly about what was shown last."""
    rng = conversation.rng
    if rng.random() < newest:
        recent = [q for q in questions if q.target is None or any(q.target is medium for medium in conversation.last)]
        questions = recent or questions
    kinds = sorted({question.kind for question in questions})
    kind = rng.choice(kinds)
    return rng.choice([question for question in questions if question.kind == kind])


def any_utterance(conversation: Conversation, questions: list[Question]) -> Utterance:
    """Choose what a user may say next: mostly one of the questions about what was shown."""
    rng = conversation.rng
    chance = conversation.rng.random()
    if chance < 0.07:
        return small_talk(rng)
    if chance < 0.16:
        return unknown(rng)
    if chance < 0.19:
        return sides(rng)
    if chance < 0.4 and (utterance := conversation.follow_up([*questions, *about_sides()])):
        return utterance
    if not conversation.pictures and not conversation.videos:
        return nothing_shown(rng, videos=rng.random() < 0.3) if chance < 0.4 else rng.choice((unknown, small_talk))(rng)
    if not conversation.videos and chance < 0.20:
        return nothing_shown(rng, videos=True)
    if conversation.pictures and len(conversation.pictures) < MAX_PICTURES and chance < 0.22:
        return ask_beyond(conversation)
    question = any_question(conversation, questions)
    if question.sentence and rng.random() < 0.15:
        return conversation.in_a_sentence(question)
    return conversation.word(question)
