"""Choice of tokens: options refused by name, greedy ties, filters, seeds and independence of the batch."""

import math
import re

import numpy as np
import pytest

from ernie_export.common.errors import UserError
from ernie_export.runtime.logits import DenseLogits
from ernie_export.runtime.sampling import Sampler
from ernie_export.runtime.sampling_params import SamplingParams

EOS = (2,)


def logits_of(*values: float) -> DenseLogits:
    return DenseLogits(np.array(values, np.float32))


def sampler(prompt_ids=(), eos=EOS, **options) -> Sampler:
    return Sampler(SamplingParams(**options), eos, prompt_ids)


def kept(logits: DenseLogits, **options) -> list[int]:
    """Ids that can be drawn at temperature 1."""
    return sampler(**({"temperature": 1.0} | options)).distribution(logits)[0].tolist()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_new_tokens", -1),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("max_new_tokens", "7"),
        ("min_new_tokens", -1),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", False),
        ("temperature", None),
        ("top_k", -1),
        ("top_k", 2.0),
        ("top_p", 1.01),
        ("top_p", -0.01),
        ("top_p", math.nan),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", math.nan),
        ("seed", -1),
        ("seed", 1.0),
        ("seed", True),
        ("stop", ("a", "")),
        ("stop", ""),
        ("stop", 5),
        ("stop", (5,)),
    ],
)
def test_bad_option_is_refused_by_name(option, value):
    with pytest.raises(UserError, match=rf"^{option}: expected .*, found {re.escape(repr(value))}$"):
        SamplingParams(**{option: value})


def test_contradictory_lengths_are_refused():
    with pytest.raises(UserError, match=r"^min_new_tokens: expected at most max_new_tokens \(4\), found 5$"):
        SamplingParams(max_new_tokens=4, min_new_tokens=5)


def test_unknown_option_is_refused_by_name():
    with pytest.raises(
        UserError, match="^top_q: expected one of the options max_new_tokens, .*, found an unknown one$"
    ):
        SamplingParams.from_options({"top_q": 1})


def test_options_are_normalised():
    params = SamplingParams.from_options({"temperature": 1, "top_k": np.int64(3), "stop": "END"})
    assert params == SamplingParams(temperature=1.0, top_k=3, stop=("END",))
    assert type(params.temperature) is float and type(params.top_k) is int
    assert SamplingParams.from_options({"stop": ["a", "b"]}).stop == ("a", "b")


def test_greedy_takes_the_first_of_equal_logits():
    assert sampler().next(logits_of(1, 5, 0, 5)) == 1


def test_logits_are_left_as_they_are():
    logits = logits_of(1, 5, 0, 5)
    sampler(prompt_ids=[1, 3], repetition_penalty=2.0, min_new_tokens=1, temperature=1.0, top_k=2).next(logits)
    np.testing.assert_array_equal(logits.full(), [1, 5, 0, 5])


def test_repetition_penalty_covers_the_prompt_and_the_answer():
    choose = sampler(prompt_ids=[1, 1, 99], repetition_penalty=2.0)  # id 99 lies outside the vocabulary
    assert choose.next(logits_of(3, 5, 0, -1)) == 0  # 5 / 2 < 3
    assert choose.next(logits_of(3, 5, 0, -1)) == 1  # 3 / 2 < 5 / 2
    assert sampler(prompt_ids=[0], repetition_penalty=2.0).next(logits_of(-1, -1.5, -9, -9)) == 1  # -1 · 2 < -1.5


def test_min_new_tokens_masks_the_end():
    choose = sampler(eos=(2, 3), min_new_tokens=2, max_new_tokens=9)
    assert [choose.next(logits_of(1, 0, 9, 8)) for _ in range(3)] == [0, 0, 2]


def test_min_new_tokens_with_nothing_but_ends():
    with pytest.raises(UserError, match="^min_new_tokens: "):
        sampler(eos=(0, 1), min_new_tokens=1).next(logits_of(1, 2))


def test_top_k_keeps_ties_of_the_last():
    assert kept(logits_of(0, 3, 1, 1, 2), top_k=3) == [1, 2, 3, 4]
    assert kept(logits_of(0, 3, 1, 1, 2), top_k=99) == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_token_that_crosses_it():
    logits = DenseLogits(np.log(np.array([0.5, 0.3, 0.15, 0.05]), dtype=np.float32))
    assert kept(logits, top_p=0.49) == [0]
    assert kept(logits, top_p=0.6) == [0, 1]
    assert kept(logits, top_p=0.81) == [0, 1, 2]
    assert kept(logits, top_p=0.0) == [0]


def test_top_p_keeps_one_of_equals():
    assert kept(DenseLogits(np.zeros(7, np.float32)), top_p=0.0) == [6]  # as a stable upward sort leaves it


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.9}, {"top_k": 5, "top_p": 0.5}])
def test_probabilities_sum_to_one(options):
    logits = np.random.default_rng(3).normal(size=1000).astype(np.float32)
    ids, probabilities = sampler(temperature=0.7, **options).distribution(DenseLogits(logits))
    assert probabilities.dtype == np.float64 and abs(probabilities.sum() - 1) < 1e-12
    assert (np.diff(ids) > 0).all()


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45, 5e-324])
def test_tiny_temperature_is_the_greedy_choice(temperature):
    assert sampler(temperature=temperature, seed=0).next(logits_of(-3, 70, -80, 69)) == 1
    assert sampler(temperature=temperature, seed=0).next(logits_of(-5, -3, -80, -9)) == 1


def test_masked_tokens_are_never_drawn():
    choose = sampler(temperature=1.0, seed=1)
    assert {choose.next(logits_of(-math.inf, 0, -math.inf, 0, -math.inf)) for _ in range(200)} == {1, 3}


@pytest.mark.parametrize(("uniform", "position"), [(0.0, 1), (0.39, 1), (0.41, 2), (1.0, 2)])
def test_a_draw_at_either_end_is_a_possible_token(uniform, position):
    choose = sampler(temperature=1.0)
    choose._random = type("Fixed", (), {"random": lambda self: uniform})()  # 1.0: the product may round up to the sum
    assert choose._draw(np.array([0.0, 0.4, 0.6, 0.0])) == position


def test_seeded_runs_repeat():
    rows = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)

    def run(seed):
        choose = sampler(temperature=1.0, seed=seed)
        return [choose.next(DenseLogits(row)) for row in rows]

    assert run(7) == run(7)
    assert run(7) != run(8)
    assert run(None) != run(None)


def test_a_request_does_not_depend_on_its_batch():
    rows = np.random.default_rng(0).normal(size=(3, 40, 50)).astype(np.float32)
    together = [sampler(temperature=1.0, seed=7) for _ in rows]
    batched = [[choose.next(DenseLogits(rows[i, step])) for i, choose in enumerate(together)] for step in range(40)]
    for i, request in enumerate(rows):
        alone = sampler(temperature=1.0, seed=7)
        assert [alone.next(DenseLogits(row)) for row in request] == [tokens[i] for tokens in batched]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_numbers_are_refused(options, bad):
    choose = sampler(**options)
    choose.next(logits_of(0, 1, 2))
    with pytest.raises(UserError, match=f"logits of generated token 1: .* 1 of 3 that are not, {bad} at id 1 first"):
        choose.next(logits_of(0, bad, 2))


def test_logits_without_a_choice_are_refused():
    with pytest.raises(UserError, match="3 of 3 that are not"):
        sampler().next(logits_of(*[-math.inf] * 3))


def test_penalty_beyond_float32_is_refused():
    with pytest.raises(UserError, match="^repetition_penalty: "):
        sampler(prompt_ids=[0], repetition_penalty=1e-45).next(logits_of(5, 1))


@pytest.mark.parametrize("shape", [(), (0,), (1, 3)])
def test_logits_of_another_shape_are_refused(shape):
    with pytest.raises(UserError, match=r"expected the shape \(vocab,\)"):
        sampler().next(DenseLogits(np.zeros(shape, np.float32)))
