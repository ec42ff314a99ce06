"""The options of one answer: how its tokens are chosen, what ends it, and the form that it must have."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import numpy as np

from ernie_export.common.errors import InvalidValue
from ernie_export.runtime.structured_outputs import StructuredOutputs

# A table is built of every stop string, as long as it is.
MAX_STOP_STRINGS = 64
MAX_STOP_LENGTH = 1024
MAX_BAD_WORDS = 256
MAX_TOKEN_IDS = 2**20  # listed in one option
MAX_BIAS = 100.0  # vLLM brings a greater bias to this one
MAX_PENALTY = 2.0  # of presence and frequency, as at OpenAI


@dataclass(frozen=True)
class SamplingParams:
    """The options that choose tokens and end an answer. Construction raises InvalidValue for a field that is wrong.

    Attributes:
        max_new_tokens: Most generated tokens; 0 computes the prompt alone, None takes what the context and the KV cache
            leave, and other answers then wait for this one.
        min_new_tokens: Fewest generated tokens; ids that end an answer are masked until then.
        temperature: Divides the logits; 0 is greedy, and then top_k, top_p, min_p and seed have no effect.
        top_k: Keep the k highest logits and whatever ties with the last of them; 0 keeps all.
        top_p: Keep the smallest set of most likely tokens that reaches this probability; 1 keeps all.
        repetition_penalty: Above 1, makes tokens of the prompt and of the answer so far less likely.
        seed: Equal seeds give equal answers; None draws a fresh one from the operating system.
        stop: Strings that end the answer and are not part of it; one string or several.
        logprobs: Return the log-probability of each chosen token and of this many most likely ones; None for none.
        min_p: Keep the tokens that are at least this many times as likely as the most likely one; 0 keeps all.
        presence_penalty: Subtracted from the logit of every token of the answer so far.
        frequency_penalty: Subtracted once for each time that the token stands in the answer so far.
        logit_bias: What to add to the logits of token ids, -100 to 100; a greater bias is brought to these.
        allowed_token_ids: The only token ids that may be chosen; None for all.
        bad_words: Words that the answer must not contain, as far as their tokens are those of the word alone.
        stop_token_ids: Further token ids that end the answer.
        ignore_eos: Whether end-of-sequence ids do not end the answer.
        include_stop_str_in_output: Whether the stop string or token that ended the answer is part of its text.
        skip_special_tokens: Whether special tokens are left out of the text.
        thinking_token_budget: Most tokens of thoughts before the answer; None for any number.
        structured_outputs: The form that the answer must have; None for free text.
        prompt_logprobs: Return the log-probability of each token of the prompt but the first, and of this many most
            likely ones; None for none. The prompt is then computed token by token, as slowly as an answer.
    """

    max_new_tokens: int | None = 128
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    thinking_token_budget: int | None = None
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        checked = {
            "max_new_tokens": self._optional_integer("max_new_tokens"),
            "min_new_tokens": self._integer("min_new_tokens", minimum=0),
            "temperature": self._number("temperature", "a finite number of at least 0", lambda x: 0 <= x < math.inf),
            "top_k": self._integer("top_k", minimum=0),
            "top_p": self._number("top_p", "a number from 0 to 1", lambda x: 0 <= x <= 1),
            "repetition_penalty": self._number(
                "repetition_penalty", "a finite number above 0", lambda x: 0 < x < math.inf
            ),
            "seed": self._optional_integer("seed"),
            "stop": self._strings("stop", MAX_STOP_STRINGS),
            "logprobs": self._optional_integer("logprobs"),
            "prompt_logprobs": self._optional_integer("prompt_logprobs"),
            "thinking_token_budget": self._optional_integer("thinking_token_budget"),
            "min_p": self._number("min_p", "a number from 0 to 1", lambda x: 0 <= x <= 1),
            "presence_penalty": self._penalty("presence_penalty"),
            "frequency_penalty": self._penalty("frequency_penalty"),
            "logit_bias": self._bias(),
            "allowed_token_ids": None if self.allowed_token_ids is None else self._token_ids("allowed_token_ids"),
            "bad_words": self._strings("bad_words", MAX_BAD_WORDS),
            "stop_token_ids": self._token_ids("stop_token_ids"),
            "structured_outputs": StructuredOutputs.from_value(self.structured_outputs),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidValue(name, "True or False", repr(getattr(self, name))[:200])
        if self.allowed_token_ids == ():
            raise InvalidValue("allowed_token_ids", "at least one token id, or None for all", "none")
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise InvalidValue("min_new_tokens", f"at most max_new_tokens ({self.max_new_tokens})", self.min_new_tokens)

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> "SamplingParams":
        """Build from keyword options: fields, or `schema` for the JSON schema that the answer must match.

        Raises InvalidValue for an option that does not exist.
        """
        values = dict(options)
        known = [field.name for field in fields(cls)]
        if "schema" in values:
            schema = values.pop("schema")
            if schema is not None and values.get("structured_outputs") is not None:
                raise InvalidValue("schema", "none beside structured_outputs", "both")
            if schema is not None:
                values["structured_outputs"] = StructuredOutputs.from_schema(schema, "schema")
        for name in values:
            if name not in known:
                raise InvalidValue(name, f"one of the options {', '.join(known)}, schema", "an unknown one")
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks every type

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0

    def check_token_ids(self, vocab_size: int) -> None:
        """Raise InvalidValue, naming the option, for a token id that the vocabulary does not have."""
        for name, ids in (
            ("logit_bias", self.logit_bias),
            ("allowed_token_ids", self.allowed_token_ids or ()),
            ("stop_token_ids", self.stop_token_ids),
        ):
            for id in ids:
                if id >= vocab_size:
                    raise InvalidValue(name, f"token ids below {vocab_size}", id)

    def _integer(self, name: str, minimum: int) -> int:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
            raise InvalidValue(name, f"a whole number of at least {minimum}", repr(value))
        return int(value)

    def _optional_integer(self, name: str) -> int | None:
        return None if getattr(self, name) is None else self._integer(name, minimum=0)

    def _number(self, name: str, expected: str, accept: Callable[[float], bool]) -> float:
        value = getattr(self, name)
        if not _is_number(value) or not accept(value):  # a NaN fails every comparison
            raise InvalidValue(name, expected, repr(value))
        return float(value)

    def _penalty(self, name: str) -> float:
        return self._number(name, f"a number from -{MAX_PENALTY:g} to {MAX_PENALTY:g}", lambda x: abs(x) <= MAX_PENALTY)

    def _strings(self, name: str, most: int) -> tuple[str, ...]:
        value = getattr(self, name)
        strings = (value,) if isinstance(value, str) else value
        if not isinstance(strings, list | tuple) or not all(isinstance(text, str) and text for text in strings):
            raise InvalidValue(name, "a non-empty string or a list of them", repr(value)[:200])
        if len(strings) > most or any(len(text) > MAX_STOP_LENGTH for text in strings):
            expected = f"at most {most} strings of at most {MAX_STOP_LENGTH} characters"
            raise InvalidValue(name, expected, f"{len(strings)} of up to {max(map(len, strings))}")
        return tuple(strings)

    def _token_ids(self, name: str) -> tuple[int, ...]:
        value = getattr(self, name)
        if not isinstance(value, list | tuple | set | frozenset) or len(value) > MAX_TOKEN_IDS:
            raise InvalidValue(name, f"a list of at most {MAX_TOKEN_IDS} token ids", repr(value)[:200])
        return tuple(sorted({_token_id(name, id) for id in value}))

    def _bias(self) -> dict[int, float]:
        value = self.logit_bias
        if not isinstance(value, Mapping) or len(value) > MAX_TOKEN_IDS:
            raise InvalidValue("logit_bias", "numbers by token id", repr(value)[:200])
        bias: dict[int, float] = {}
        for id, number in value.items():  # JSON has texts as keys
            key = _token_id("logit_bias", int(id) if isinstance(id, str) and id.isascii() and id.isdigit() else id)
            if not _is_number(number) or not math.isfinite(number):
                raise InvalidValue(f"logit_bias.{key}", "a finite number", repr(number)[:200])
            bias[key] = float(min(max(number, -MAX_BIAS), MAX_BIAS))
        return bias


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _token_id(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**31:
        raise InvalidValue(name, "token ids, whole numbers of at least 0", repr(value)[:200])
    return int(value)
