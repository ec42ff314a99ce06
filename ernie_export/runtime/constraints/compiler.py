"""Compile the form of an answer to a grammar over the tokenizer's vocabulary, within limits on time and memory.

Compiling lets other threads run: llguidance lets go of the interpreter's lock.
"""

import json
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from

from ernie_export.common.errors import InvalidValue
from ernie_export.common.json_fields import one_line
from ernie_export.runtime.closed_schema import closed, closed_throughout
from ernie_export.runtime.constraints.faults import find_fault
from ernie_export.runtime.constraints.grammar import Grammar, refusal
from ernie_export.runtime.preprocess.tokenizer import ChatTokenizer
from ernie_export.runtime.structured_outputs import WHITESPACE, StructuredOutputs

# Bounds on the work for one mask, in llguidance's units: its documentation gives their times and memory.
LIMITS = LLParserLimits(step_lexer_fuel=100_000, step_max_items=50_000, verbose_errors=False)


class GrammarCompiler:
    """The compiler of forms for one tokenizer. Any thread may use it."""

    def __init__(self, tokenizer: ChatTokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """Prepare to compile.

        Args:
            tokenizer: The tokenizer.
            vocab_size: Logits of a token, at least the tokenizer's tokens.
            eos_token_ids: Ids that end an answer, at least one.
        """
        self._source = tokenizer
        self._vocab_size = vocab_size
        self._eos = list(eos_token_ids)
        self._lock = threading.Lock()

    def compile(self, form: StructuredOutputs) -> Grammar:
        """Return the grammar of a form. Raises InvalidValue for one that is malformed, too large, or cannot be met."""
        text = self._to_grammar(form)
        with self._lock:
            tokenizer = self._tokenizer
        matcher = LLMatcher(tokenizer, text, log_level=0, limits=LIMITS)
        if matcher.is_error():
            if form.json is not None:
                raise find_fault(json.loads(form.json), form.path("json"), refusal(matcher), LIMITS)
            raise InvalidValue(_path(form), "a form that llguidance takes", refusal(matcher))
        grammar = Grammar(matcher, self._vocab_size, _path(form), self._eos)
        self._check_start(grammar)
        return grammar

    def warm(self) -> None:
        """Read the vocabulary, which otherwise the first form waits for: 0.7 s for one of 103,424 tokens."""
        with self._lock:
            _ = self._tokenizer

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return LLTokenizer(self._source.backend.to_str(), n_vocab=self._vocab_size, eos_token=self._eos)

    def _check_start(self, grammar: Grammar) -> None:
        """Raise InvalidValue for a form that no answer has, or that no token of the vocabulary can begin."""
        state = grammar.start()
        try:
            mask = state.mask()
        except InvalidValue as e:
            raise InvalidValue(state.name, "a form that some answer has", f"none ({e.found})") from e
        if not mask.count():
            raise InvalidValue(state.name, "a form that some token of the vocabulary can begin", "none that does")

    def _to_grammar(self, form: StructuredOutputs) -> str:
        """Return the form in llguidance's own format."""
        if form.json is not None or form.json_object:
            schema = json.loads(form.json) if form.json is not None else {"type": "object"}
            schema = closed_throughout(schema) if form.disable_additional_properties else closed(schema)
            schema = schema if isinstance(schema, dict) else {"allOf": [schema]}
            return LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=_whitespace(form))  # type: ignore[arg-type]
        try:
            if form.choice is not None:
                return grammar_from("choice", json.dumps(form.choice))
            if form.regex is not None:
                return LLMatcher.grammar_from_regex(form.regex)
            return grammar_from("grammar", form.grammar or "")
        except Exception as e:  # its reader of GBNF raises Exception itself, and RecursionError
            raise InvalidValue(_path(form), "a grammar in Lark or GBNF", one_line(str(e), 200)) from e


def _whitespace(form: StructuredOutputs) -> dict[str, Any]:
    if form.disable_any_whitespace:
        return {"whitespace_flexible": False}
    return {"whitespace_pattern": form.whitespace_pattern or WHITESPACE}


def _path(form: StructuredOutputs) -> str:
    return next(
        form.path(name)
        for name in ("json", "regex", "choice", "grammar", "json_object")
        if getattr(form, name) is not None
    )
