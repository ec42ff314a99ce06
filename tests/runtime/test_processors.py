"""Options of vLLM against their formulas, written again in NumPy, in vLLM's order; and the shortcut by top-k logits."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ernie_export.common.errors import InvalidValue
from ernie_export.runtime.constraints.compiler import GrammarCompiler
from ernie_export.runtime.logits import DenseLogits, TopK, TopKLogits
from ernie_export.runtime.preprocess.tokenizer import ChatTokenizer
from ernie_export.runtime.sampling import Sampler
from ernie_export.runtime.sampling_params import SamplingParams
from ernie_export.runtime.structured_outputs import StructuredOutputs
from tests.mini import VOCABULARY
from tests.paths import MINI

EOS = (2,)


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def formula(logits, prompt, answer, bad_words, params: SamplingParams) -> np.ndarray:
    """Probabilities (V,) by the text of vLLM's documentation, in double precision."""
    x = logits.astype(np.float64)
    if params.allowed_token_ids is not None:
        x[np.setdiff1d(np.arange(len(x)), params.allowed_token_ids)] = -np.inf
    for word in bad_words:
        if len(word) == 1 or answer[-(len(word) - 1) :] == word[:-1]:
            x[word[-1]] = -np.inf
    if len(answer) < params.min_new_tokens:
        x[[*EOS, *params.stop_token_ids]] = -np.inf
    for id, bias in params.logit_bias.items():
        x[id] += bias
    for id in {*prompt, *answer}:
        x[id] = x[id] * params.repetition_penalty if x[id] < 0 else x[id] / params.repetition_penalty
    for id in set(answer):
        x[id] -= params.frequency_penalty * answer.count(id) + params.presence_penalty
    probabilities = softmax(x / params.temperature)
    probabilities = np.where(probabilities >= params.min_p * probabilities.max(), probabilities, 0)
    if params.top_k:
        kth = np.sort(probabilities)[-min(params.top_k, len(x))]
        probabilities = np.where(probabilities >= kth, probabilities, 0)
    probabilities /= probabilities.sum()
    if params.top_p < 1:
        order = np.argsort(-probabilities, kind="stable")
        before = np.cumsum(probabilities[order]) - probabilities[order]
        probabilities[order[before >= params.top_p]] = 0
    return probabilities / probabilities.sum()


def case(seed: int) -> tuple[np.ndarray, list[int], list[int], list[list[int]], SamplingParams]:
    """Logits, prompt, answer, tokens of bad words, and options, half of them neutral, that meet in few tokens."""
    rng = np.random.default_rng(seed)
    vocabulary = int(rng.integers(30, 200))

    def one_of(neutral, *others):
        return others[rng.integers(len(others))] if rng.random() < 0.5 else neutral

    def some(most: int, count: int) -> list[int]:
        return rng.integers(0, most, rng.integers(1, count)).tolist()

    params = SamplingParams(
        max_new_tokens=9,
        temperature=float(rng.choice([0.5, 1.0, 1.8])),
        min_p=one_of(0.0, 0.01, 0.3),
        top_k=one_of(0, 1, 5, 40),
        top_p=one_of(1.0, 0.3, 0.9),
        presence_penalty=one_of(0.0, -1.5, 0.7, 2.0),
        frequency_penalty=one_of(0.0, -0.5, 1.3),
        repetition_penalty=one_of(1.0, 0.8, 1.7),
        logit_bias=one_of({}, {id: float(rng.choice([-100, -3, 2.5])) for id in some(12, 5)}),
        allowed_token_ids=one_of(None, (0, 5, *some(vocabulary, 20))),
        min_new_tokens=one_of(0, 4),
        stop_token_ids=one_of((), (3, 4)),
        seed=1,
    )
    answer = rng.choice([5, 6, 7], rng.integers(0, 7)).tolist()
    words = [rng.choice([5, 6, 8], rng.integers(1, 4)).tolist() for _ in range(one_of(0, 1, 3))]
    logits = rng.normal(0, rng.choice([0.5, 4.0]), vocabulary).astype(np.float32)
    logits[:12] += one_of(0, 6)
    return logits, some(12, 9), answer, words, params


def replayed(prompt, answer, words, params) -> Sampler:
    sampler = Sampler(params, {*EOS, *params.stop_token_ids}, prompt, words)
    for token in answer:
        sampler.force(token)
    return sampler


@pytest.mark.parametrize("seed", range(150))
def test_probabilities_are_those_of_the_formula(seed):
    logits, prompt, answer, words, params = case(seed)
    ids, probabilities = replayed(prompt, answer, words, params).distribution(DenseLogits(logits))
    ours = np.zeros(len(logits))
    ours[ids] = probabilities
    expected = formula(logits, prompt, answer, words, params)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-7)


def device(logits: np.ndarray, k: int) -> tuple[TopKLogits, list[int]]:
    """Logits on a device with the highest `k` at hand, and a list that grows with every fetch of all."""
    best = np.lexsort((np.arange(len(logits)), -logits))[:k]
    fetched: list[int] = []

    def fetch() -> np.ndarray:
        fetched.append(1)
        return logits

    return TopKLogits(TopK(best, logits[best], float(logits.sum())), fetch), fetched


@pytest.mark.parametrize("seed", range(150))
@pytest.mark.parametrize("k", [2, 16])
def test_top_k_logits_choose_the_same_token(seed, k):
    logits, prompt, answer, words, params = case(seed)
    params = replace(params, repetition_penalty=1, presence_penalty=0, frequency_penalty=0, logit_bias={})
    params = replace(params, temperature=params.temperature if seed % 2 else 0)
    partial, _ = device(logits, k)
    tokens = [replayed(prompt, answer, words, params).next(values) for values in (partial, DenseLogits(logits))]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_form_of_the_answer_chooses_the_same_of_all_logits_and_of_the_most_likely(temperature):
    """All logits are read where none of the most likely tokens has a place in the form, and else only then."""
    tokenizer = ChatTokenizer.from_folder(MINI)
    schema = {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 3}
    grammar = GrammarCompiler(tokenizer, VOCABULARY, EOS).compile(StructuredOutputs.from_schema(schema, "schema"))
    params = SamplingParams(temperature=temperature, top_k=2, max_new_tokens=99, seed=1)
    rng = np.random.default_rng(0)
    states = [grammar.start() for _ in range(2)]
    of_few, of_all = (Sampler(params, EOS, [], constraint=state) for state in states)
    fetches = []
    for _ in range(30):
        logits = rng.normal(size=VOCABULARY).astype(np.float32)
        logits[grammar.eos] = 0
        partial, fetched = device(logits, 200)
        allowed = states[0].mask().ids(VOCABULARY)
        assert of_few.next(partial) == of_all.next(DenseLogits(logits))
        expected = np.intersect1d(allowed, np.argsort(-logits)[:200])
        enough = 1 if temperature == 0 else 3  # at random the second has to be above the last of the most likely
        if not len(expected) or len(expected) >= enough:
            assert bool(fetched) == (not len(expected))
        fetches.append(bool(fetched))
        if of_few.finished:
            break
    assert len(set(fetches)) == 2


def test_ends_that_are_masked_may_be_all_of_the_top_k():
    logits = np.arange(100, dtype=np.float32)[::-1].copy()
    partial, fetched = device(logits, 3)
    params = SamplingParams(min_new_tokens=1, max_new_tokens=9, stop_token_ids=(0, 1))
    assert Sampler(params, (0, 1, 2), []).next(partial) == 3 and fetched


@pytest.mark.parametrize(
    ("options", "fetches"),
    [
        ({"temperature": 0.0}, 0),
        ({"temperature": 0.0, "min_new_tokens": 2}, 0),
        ({"top_k": 3}, 0),
        ({"top_k": 3, "min_p": 0.1, "top_p": 0.5}, 0),
        ({"min_p": 0.2}, 0),
        ({"min_p": 1e-9}, 1),
        ({}, 1),
        ({"top_k": 3, "presence_penalty": 0.5}, 1),
        ({"temperature": 0.0, "logit_bias": {1: 1}}, 1),
        ({"temperature": 0.0, "allowed_token_ids": [1, 2]}, 0),
        ({"temperature": 0.0, "allowed_token_ids": [50]}, 1),
        ({"top_k": 2, "allowed_token_ids": [1, 2]}, 0),
        ({"top_k": 2, "allowed_token_ids": [1, 50]}, 1),
    ],
)
def test_all_logits_are_fetched_only_where_they_could_matter(options, fetches):
    logits = np.arange(100, dtype=np.float32)[::-1].copy() / 2
    partial, fetched = device(logits, 16)
    Sampler(SamplingParams(**{"temperature": 1.0, "max_new_tokens": 9} | options), EOS, []).next(partial)
    assert len(fetched) == fetches


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"allowed_token_ids": [2], "min_new_tokens": 1}, "min_new_tokens"),
        ({"allowed_token_ids": [50]}, "allowed_token_ids"),  # none of the vocabulary
    ],
)
def test_options_that_leave_no_token_are_named(options, field):
    with pytest.raises(InvalidValue) as refused:
        Sampler(SamplingParams(max_new_tokens=9, **options), EOS, []).next(DenseLogits(np.zeros(9, np.float32)))
    assert refused.value.field == field


def test_bad_words_that_leave_no_token_are_named():
    with pytest.raises(InvalidValue, match="^bad_words: "):
        Sampler(SamplingParams(), EOS, [], [[0], [1]]).next(DenseLogits(np.zeros(2, np.float32)))


def test_a_bad_word_has_its_forms_at_the_beginning_and_within_a_text():
    """Source: vLLM's `update_from_tokenizer`: a second form only if it has as many tokens and another first one."""
    tokenizer = ChatTokenizer.from_folder(MINI)
    pieces = [[tokenizer.backend.id_to_token(id) for id in ids] for ids in tokenizer.bad_word_ids("red")]
    assert pieces == [["red"], ["▁red"]]
    assert [len(ids) for ids in tokenizer.bad_word_ids("Zz")] == [2]  # bytes, and a space before them is one more


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"min_p": 1.5}, "min_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": True}, "frequency_penalty"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias"),
        ({"logit_bias": {"x": 1.0}}, "logit_bias"),
        ({"logit_bias": {3: "x"}}, "logit_bias.3"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias.3"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": "12"}, "allowed_token_ids"),
        ({"stop_token_ids": [1.5]}, "stop_token_ids"),
        ({"bad_words": [""]}, "bad_words"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp"),
        ({"structured_outputs": "a"}, "structured_outputs"),
    ],
)
def test_a_wrong_option_is_named(options, field):
    with pytest.raises(InvalidValue) as refused:
        SamplingParams(**options)
    assert refused.value.field == field


def test_a_bias_beyond_100_is_brought_to_it_and_keys_may_be_text():
    assert SamplingParams.from_options({"logit_bias": {"7": 1e9, 8: -200}}).logit_bias == {7: 100.0, 8: -100.0}


def test_the_examples_vocabulary_has_every_byte_of_json():
    """An answer in JSON can be written with the example's tokenizer, whatever its strings say."""
    vocabulary = json.loads((MINI / "tokenizer.json").read_text())["model"]["vocab"]
    assert all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
