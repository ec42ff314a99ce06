"""The text of an answer as its tokens arrive: the thoughts before it are kept apart, its tags are dropped.

A thinking model writes its thoughts, `</think>`, and the answer, which may stand between `<response>` and
`</response>`. The token `</think>` may be a special one, which leaves no text behind: the split is made at its id.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from ernie_export.common.errors import InvalidValue
from ernie_export.runtime.preprocess.chat import ChatProcessor
from ernie_export.runtime.preprocess.tokenizer import ChatTokenizer
from ernie_export.runtime.sampling_params import SamplingParams
from ernie_export.runtime.text_stream import TextStream, longest_ending

OPEN, CLOSE = "<response>", "</response>"
LONGEST_ENDING = 8  # tokens of a prompt in which its open `<think>` is looked for
SHOWN = ("<tool_call>", "</tool_call>", OPEN, CLOSE)  # part of the text, special tokens or not


class Piece(NamedTuple):
    """What a token adds to an answer.

    Attributes:
        text: Text of the answer.
        reasoning: Text of the thoughts before it.
    """

    text: str = ""
    reasoning: str = ""


@dataclass(frozen=True)
class ThinkTokens:
    """The ids of the tokens around thoughts.

    Attributes:
        begin: Id of `<think>`; None where it is no single token.
        end: Id of `</think>`.
    """

    begin: int | None
    end: int

    @classmethod
    def of(cls, tokenizer: ChatTokenizer) -> "ThinkTokens | None":
        """Return the ids of a tokenizer; None for one that has no `</think>`, as models have that do not think."""
        end = tokenizer.backend.token_to_id("</think>")
        return None if end is None else cls(tokenizer.backend.token_to_id("<think>"), end)


@dataclass(frozen=True)
class AnswerFormat:
    """What tokens of an answer stand for, by a checkpoint's tokenizer.

    Attributes:
        decode: Ids to text, special tokens left out unless `skip_special_tokens` is false.
        byte_tokens: Ids of the pieces that stand for single bytes.
        shown: Texts of the special tokens that are part of an answer's text, by their ids.
        think: The tokens around thoughts; None for a model that does not think.
    """

    decode: Callable[..., str]
    byte_tokens: frozenset[int]
    shown: Mapping[int, str]
    think: ThinkTokens | None

    @classmethod
    def of(cls, chat: ChatProcessor) -> "AnswerFormat":
        """Return the format by a checkpoint's tokenizer."""
        shown = {id: text for text in SHOWN if (id := chat.tokenizer.special_id(text)) is not None}
        return cls(chat.decode, chat.byte_tokens, shown, ThinkTokens.of(chat.tokenizer))

    def begin(self, prompt: np.ndarray, params: SamplingParams, split_thoughts: bool = True) -> "AnswerText":
        """Return what makes text of an answer's tokens.

        Args:
            prompt: Ids (S,) of the prompt.
            params: The options of the answer.
            split_thoughts: Whether thoughts are kept apart from the text.

        Raises:
            InvalidValue: The model does not think, and a budget for thoughts is given.
        """
        decode = partial(self.decode, skip_special_tokens=params.skip_special_tokens)
        text = TextStream(decode, params.stop, self.byte_tokens, self.shown, params.include_stop_str_in_output)
        if self.think is None or not split_thoughts:
            if params.thinking_token_budget is not None:
                raise InvalidValue("thinking_token_budget", "a tokenizer with </think>", "a model that does not think")
            return AnswerText(text)
        return AnswerText(
            text,
            think=self.think,
            thoughts=TextStream(decode, params.stop, self.byte_tokens, include_stop=params.include_stop_str_in_output),
            thinking=self._ends_in_thoughts(prompt, self.think),
            budget=params.thinking_token_budget,
        )

    def _ends_in_thoughts(self, prompt: np.ndarray, think: ThinkTokens) -> bool:
        """Return whether a prompt ends in `<think>`, with nothing but white space after it."""
        for token in map(int, prompt[: -LONGEST_ENDING - 1 : -1]):
            if token == think.begin:
                return True
            if token == think.end or self.decode([token, token]).strip():
                return False
        return False


class AnswerText:
    """Turns the tokens of one answer into pieces of its thoughts and of its text."""

    def __init__(
        self,
        text: TextStream,
        think: ThinkTokens | None = None,
        thoughts: TextStream | None = None,
        thinking: bool = False,
        budget: int | None = None,
    ) -> None:
        """Start an answer.

        Args:
            text: The stream of the answer's text, which ends at a stop string.
            think: The tokens around thoughts; None for a model that does not think.
            thoughts: The stream of the thoughts, which end the answer at a stop string, as in vLLM.
            thinking: Whether the prompt ends within thoughts.
            budget: Most tokens of thoughts; None for any number.
        """
        self.thinking = thinking
        self.reasoning_tokens = 0
        self._text = text
        self._think = think
        self._thoughts = thoughts
        self._budget = budget
        self._tags = _ResponseTags()
        self._begun = False
        self._pieces: list[Piece] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer, or its thoughts."""
        return bool(self.stop_string)

    @property
    def stop_string(self) -> str:
        """The stop string that has ended the answer, or its thoughts; empty if none has."""
        return (self._thoughts.stop_string if self._thoughts is not None else "") or self._text.stop_string

    @property
    def text(self) -> str:
        """The text of the answer so far."""
        return "".join(piece.text for piece in self._pieces)

    @property
    def reasoning(self) -> str:
        """The thoughts so far."""
        return "".join(piece.reasoning for piece in self._pieces)

    @property
    def end_of_thoughts(self) -> int | None:
        """The token up to which thoughts go on; None where the text has begun."""
        return self._think.end if self._think is not None and self.thinking else None

    def forced_token(self) -> int | None:
        """Return the token that has to come next, `</think>` once the budget is spent; None where any may come."""
        if self._think is None or not self.thinking or self._budget is None or self.reasoning_tokens < self._budget:
            return None
        return self._think.end

    def push(self, token: int) -> Piece:
        """Take one more token; returns what it completes, perhaps nothing."""
        begun, self._begun = self._begun, True
        if self._think is not None and token == self._think.end:
            return self._keep(self._end_thoughts())
        if self._think is not None and token == self._think.begin:
            self.thinking = self.thinking or not begun
            return Piece()
        if self.thinking and self._thoughts is not None:
            self.reasoning_tokens += 1
            return self._keep(Piece(reasoning=self._thoughts.push(token)))
        return self._keep(Piece(self._visible(self._text.push(token))))

    def finish(self) -> Piece:
        """Take the end of the answer; returns what was held back."""
        reasoning = self._thoughts.finish() if self._thoughts is not None and self.thinking else ""
        text = self._visible(self._text.finish()) + self._tags.finish()
        return self._keep(Piece(text, reasoning))

    def _visible(self, text: str) -> str:
        return text if self._think is None else self._tags.push(text)

    def _end_thoughts(self) -> Piece:
        if not self.thinking or self._thoughts is None:
            return Piece()
        self.thinking = False
        self._tags.after_thoughts()
        return Piece(reasoning=self._thoughts.finish())

    def _keep(self, piece: Piece) -> Piece:
        if piece != Piece():
            self._pieces.append(piece)
        return piece


class _ResponseTags:
    """Drops the tags of a text that begins with `<response>`, and the line feeds around them."""

    def __init__(self) -> None:
        self._held = ""
        self._leading = True  # nothing has been shown since the beginning, or since a tag
        self._inside = False  # between the tags
        self._tagged = False  # the text has begun with a tag
        self._drop_leading = False

    def after_thoughts(self) -> None:
        """Drop the line feeds that come next, between the thoughts and the text."""
        self._drop_leading = True

    def push(self, text: str) -> str:
        """Take more text; returns what can be shown."""
        self._held += text
        shown = ""
        while self._held:
            if self._leading and not self._find_beginning():
                break
            if not self._inside:
                shown += self._held
                self._held = ""
                break
            before, tag, after = self._held.partition(CLOSE)
            if not tag:
                certain = self._held[: len(self._held) - longest_ending(self._held, CLOSE)].rstrip("\n")
                self._held = self._held[len(certain) :]
                shown += certain
                break
            shown += before.rstrip("\n")
            self._held = after
            self._inside = False
            self._leading = self._drop_leading = True
        return shown

    def finish(self) -> str:
        """Return the rest of the text, which was held back."""
        rest, self._held = self._held, ""
        if self._inside:
            return rest.strip("\n")
        return rest.lstrip("\n") if self._leading and self._drop_leading else rest

    def _find_beginning(self) -> bool:
        """Drop what stands before the text, and return whether it has begun."""
        beginning = self._held.lstrip()
        if not self._tagged and OPEN.startswith(beginning[: len(OPEN)]):
            if len(beginning) < len(OPEN):  # white space, or the beginning of the tag
                return False
            self._held = beginning[len(OPEN) :]
            self._inside = self._tagged = self._drop_leading = True
        if self._drop_leading:
            self._held = self._held.lstrip("\n")
        self._leading = not self._held
        return not self._leading
