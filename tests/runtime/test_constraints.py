"""Forms of an answer: masks that lead to valid JSON, and schemas, expressions and grammars that are refused in time."""

import json
import re
import time
from typing import Any

import numpy as np
import pytest

from ernie_export.common.errors import InvalidValue
from ernie_export.runtime.constraints import TokenMask
from ernie_export.runtime.constraints.compiler import GrammarCompiler
from ernie_export.runtime.constraints.grammar import Grammar
from ernie_export.runtime.constraints.prefetch import MaskPrefetcher
from ernie_export.runtime.preprocess.tokenizer import ChatTokenizer
from ernie_export.runtime.structured_outputs import StructuredOutputs
from ernie_export.runtime.token_bytes import TokenBytes
from tests.paths import MINI

VOCABULARY = 1700  # rows of a model; its tokenizer has fewer
EOS = 2


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer.from_folder(MINI)


@pytest.fixture(scope="module")
def compiler(tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, VOCABULARY, [EOS])


def allowed(mask: TokenMask) -> np.ndarray:
    return mask.ids(VOCABULARY)


def walk(grammar: Grammar, data: TokenBytes, rng: np.random.Generator, most: int = 400) -> tuple[bytes, bool]:
    """The bytes of an answer drawn from the masks, short tokens preferred, and whether it ended."""
    state = grammar.start()
    text = b""
    for _ in range(most):
        ids = allowed(state.mask())
        ends = EOS in ids
        if ends and (len(ids) == 1 or rng.random() < 0.3):
            return text, True
        token = int(rng.choice(ids[ids != EOS]))
        text += data(token)
        state.accept(token)
        if state.finished:
            return text, True
    return text, False


SCHEMAS: dict[str, Any] = {
    "a flat object": {
        "type": "object",
        "properties": {
            "a": {"enum": ["x", 'y"', "ü", 3, None]},
            "b": {"type": "integer", "minimum": -5, "maximum": 70},
        },
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "arrays": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "text by a pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}$"},
    "text of a length": {"type": "string", "minLength": 3, "maxLength": 5},
    "a date": {"type": "string", "format": "date"},
    "one of two": {
        "anyOf": [{"const": "left"}, {"type": "object", "required": ["n"], "properties": {"n": {"const": 1}}}]
    },
    "a tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1}},
                "required": ["children"],
                "additionalProperties": False,
            }
        },
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_the_masks_allow_is_json_of_the_schema(compiler, tokenizer, name):
    jsonschema = pytest.importorskip("jsonschema")
    grammar = compiler.compile(StructuredOutputs(json=SCHEMAS[name]))
    ended = 0
    for seed in range(12):
        text, complete = walk(grammar, TokenBytes(tokenizer), np.random.default_rng(seed))
        if complete:
            ended += 1
            jsonschema.validate(json.loads(text.decode()), SCHEMAS[name])
    assert ended >= 3


def test_masks_never_allow_a_special_token_or_one_that_the_tokenizer_has_not(compiler, tokenizer):
    special = TokenBytes(tokenizer).special
    known = set(tokenizer.backend.get_vocab().values())
    state = compiler.compile(StructuredOutputs.from_schema({"type": "string"}, "schema")).start()
    state.accept(tokenizer.backend.token_to_id("<0x22>"))
    ids = set(allowed(state.mask()).tolist())
    assert len(ids) > 200 and not ids & special and ids <= known


def test_the_library_reads_the_vocabulary_as_this_runtime_does(compiler, tokenizer):
    data = TokenBytes(tokenizer)
    ids = [id for id in tokenizer.backend.get_vocab().values() if id not in data.special and data(id) != b"\xff"]
    assert [compiler._tokenizer.decode_bytes([id]) for id in ids] == [data(id) for id in ids]


def test_up_to_a_token_an_answer_is_free_but_may_not_end(compiler, tokenizer):
    state = compiler.compile(StructuredOutputs(choice=("1",))).start(after=7)
    before = state.mask()
    assert np.setdiff1d(np.arange(VOCABULARY), allowed(before)).tolist() == [EOS] and not state.finished
    state.accept(5)
    state.accept(7)
    mask = state.mask()
    assert len(allowed(mask)) >= 1
    state.accept(int(allowed(mask)[0]))
    assert state.finished


def test_answers_of_one_grammar_do_not_share_a_state(compiler):
    grammar = compiler.compile(StructuredOutputs(choice=("12",)))
    first, second = grammar.start(), grammar.start()
    first.accept(int(allowed(first.mask())[0]))
    assert allowed(first.mask()).tolist() != allowed(second.mask()).tolist()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("density", [0.01, 0.5, 0.99])
def test_a_mask_reads_its_bits_in_every_way_alike(seed, density):
    rng = np.random.default_rng(seed)
    vocabulary = int(rng.integers(33, 200))
    flags = rng.random(vocabulary) < density
    bits = np.packbits(np.append(flags, np.ones(-vocabulary % 32, bool)), bitorder="little")  # those past it are set
    mask = TokenMask(bits.view(np.int32))
    assert (mask.flags(vocabulary) == flags).all()
    assert mask.ids(vocabulary).tolist() == np.flatnonzero(flags).tolist()
    assert (mask.allows(np.arange(vocabulary)) == flags).all()
    assert mask.count() == flags.sum() + -vocabulary % 32


def test_ends_are_taken_out_of_a_mask_unless_nothing_else_is_left():
    mask = TokenMask(np.array([0b1010, 1], np.int32))
    assert mask.without(np.array([3, 31])).ids(60).tolist() == [1, 32]
    assert mask.without(np.array([1, 3, 32])).ids(60).tolist() == [1, 3, 32]


def test_masks_are_computed_ahead_and_are_those_of_each_answer(compiler):
    grammar = compiler.compile(StructuredOutputs(json=SCHEMAS["a flat object"]))
    rng = np.random.default_rng(0)
    alone = [grammar.start() for _ in range(5)]
    together = [grammar.start() for _ in range(5)]
    prefetcher = MaskPrefetcher()
    for _ in range(12):
        with prefetcher.ahead(together):
            pass
        assert all(state._next is not None for state in together)  # nothing is left to compute
        for first, second in zip(alone, together, strict=True):
            ids = allowed(first.mask())
            assert allowed(second.mask()).tolist() == ids.tolist()
            token = int(rng.choice(ids[ids != EOS] if len(ids) > 1 else ids))
            first.accept(token)
            second.accept(token)


def test_an_error_in_computing_masks_ahead_comes_back(compiler):
    state = compiler.compile(StructuredOutputs(choice=("1",))).start()
    state._matcher = None
    with pytest.raises(TypeError), MaskPrefetcher().ahead([state]):
        pass


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def product(count: int) -> dict[str, Any]:
    parts: list[Any] = [
        {"anyOf": [{"properties": {f"{side}{number}": {}}} for side in "ab"]} for number in range(count)
    ]
    return {"type": "object", "allOf": parts}


def wide() -> dict[str, Any]:
    leaf = {
        "type": "array",
        "items": {"type": "object", "properties": {f"q{i}": {"type": "number"} for i in range(25)}},
    }
    return {"type": "object", "properties": {f"p{i}": {"anyOf": [leaf] * 5} for i in range(20)}}


HOSTILE: dict[str, dict[str, Any]] = {
    "1,000 levels": {"json": nested(1000)},
    "60 levels": {"json": nested(60)},
    "a long enum": {"json": {"enum": [f"value {n * 7919}" for n in range(50_000)]}},
    "two to the 14th objects": {"json": product(14)},
    "a wide schema": {"json": wide()},
    "a reference to itself": {"json": {"$ref": "#"}},
    "references in a circle": {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
    "a tree without leaves": {
        "json": {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}}}
    },
    "a reference elsewhere": {"json": {"$ref": "http://localhost/schema"}},
    "a file": {"json": {"$ref": "file:///etc/passwd"}},
    "a billion items": {"json": {"type": "array", "items": {"type": "string"}, "minItems": 10**9}},
    "a billion characters": {"json": {"type": "string", "minLength": 10**9}},
    "numbers out of range": {"json": {"type": "number", "minimum": 1e-300, "maximum": 1e300}},
    "an exponential expression": {"regex": "(x+x+)+y"},
    "counts within counts": {"regex": "((a{1,100}){1,100}){1,100}"},
    "overlapping gaps": {"regex": "(.*a.{20}.*b.{20}.*){10}"},
    "classes by the thousand": {"regex": r"(\p{L}{1,1000}\p{N}{1,1000}){1,1000}"},
    "a long alternation": {"regex": "|".join(f"{n * 7919}[a-z]*" for n in range(3000))},
    "brackets": {"grammar": "root ::= " + "(" * 20_000},
    "a long GBNF": {"grammar": "root ::= " + '"a" | ' * 5000 + '"b"'},
    "an ambiguous grammar": {"grammar": 'start: s\ns: s s s | s s | "a" | ""\n'},
    "many choices": {"choice": [f"choice number {n}" for n in range(4000)]},
    "a whitespace of its own": {"json": {"type": "object"}, "whitespace_pattern": "( |  )*((\\s+)+)+"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_form_is_refused_or_compiled_within_a_second(compiler, tokenizer, name):
    began = time.thread_time()
    try:
        grammar = compiler.compile(StructuredOutputs(**HOSTILE[name]))
    except InvalidValue as e:
        assert len(str(e)) < 1000 and "\n" not in str(e)
        grammar = None
    assert time.thread_time() - began < 1
    if grammar is not None:  # what it allows is followed a few steps, none of them slow, or ended with an error
        state = grammar.start()
        rng = np.random.default_rng(0)
        for _ in range(30):
            began = time.thread_time()
            try:
                mask = state.mask()
            except InvalidValue:
                break
            assert time.thread_time() - began < 0.5
            state.accept(int(rng.choice(allowed(mask))))
            if state.finished:
                break


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            {"json": {"properties": {"a": {"items": {"if": {}}}}}},
            r'^structured_outputs.json.properties.a.items: .*"if"',
        ),
        ({"json": {"anyOf": [{"type": "string"}, {"uniqueItems": True}]}}, r"^structured_outputs.json.anyOf.1: "),
        (
            {"json": {"properties": {"a": {"$ref": "#/$defs/B"}}, "$defs": {"B": {"properties": {"c": {"not": {}}}}}}},
            r"^structured_outputs.json.properties.a: ",
        ),
        ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, r"^structured_outputs.json: .* Unsatisfiable"),
        ({"json": {"properties": {"a": 5}}}, r"^structured_outputs.json.properties.a: .* found 5, which is no schema"),
        ({"json": False}, r"^structured_outputs.json: .* false"),
        ({"json": nested(100)}, r"^structured_outputs.json: expected a JSON schema of at most 48 levels"),
        ({"json": "[" * 100_000}, r"^structured_outputs.json: expected a JSON schema"),
        ({"json": {"a": float("nan")}}, r"^structured_outputs.json: expected a JSON schema"),
        ({"regex": "("}, r"^structured_outputs.regex: "),
        ({"regex": "a" * 40_000}, r"^structured_outputs.regex: expected at most 32768 bytes, found 40000"),
        ({"regex": "\ud800"}, r"^structured_outputs.regex: expected text in Unicode"),
        ({"grammar": 'root ::= "a'}, r"^structured_outputs.grammar: "),
        ({"choice": ["a", 3]}, r"^structured_outputs.choice: "),
        ({"choice": ["a"] * 5000}, r"^structured_outputs.choice: expected at most 4096 texts"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_form_is_refused_by_path(compiler, form, message):
    with pytest.raises(InvalidValue) as refused:
        compiler.compile(StructuredOutputs(**form))
    assert re.search(message, str(refused.value))
