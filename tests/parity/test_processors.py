"""min_p and bad_words against transformers' own processors."""

import numpy as np
import pytest
import torch
from transformers import MinPLogitsWarper, NoBadWordsLogitsProcessor

from ernie_export.runtime.logits import DenseLogits
from ernie_export.runtime.sampling import Sampler
from ernie_export.runtime.sampling_params import SamplingParams

VOCABULARY = 90


def ours(logits: np.ndarray, params: SamplingParams, answer: list[int], words: list[list[int]]) -> np.ndarray:
    sampler = Sampler(params, (2,), [], words)
    for token in answer:
        sampler.force(token)
    ids, probabilities = sampler.distribution(DenseLogits(logits))
    found = np.zeros(len(logits))
    found[ids] = probabilities
    return found


@pytest.mark.parametrize("seed", range(20))
def test_min_p_and_bad_words_leave_what_transformers_leaves(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, rng.choice([0.5, 3]), VOCABULARY).astype(np.float32)
    answer = rng.choice([5, 6, 7], rng.integers(1, 7)).tolist()
    words = [rng.choice([5, 6, 8], rng.integers(1, 4)).tolist() for _ in range(3)]
    words.append([answer[-1], int(logits.argmax())])  # one that counts
    temperature = float(rng.choice([0.5, 1, 1.7]))
    min_p = float(rng.choice([0.001, 0.05, 0.4]))
    scores = NoBadWordsLogitsProcessor(words, eos_token_id=2)(torch.tensor([answer]), torch.from_numpy(logits[None]))
    scores = MinPLogitsWarper(min_p)(torch.tensor([answer]), scores / temperature)
    expected = scores.softmax(-1)[0].numpy()
    params = SamplingParams(temperature=temperature, min_p=min_p, max_new_tokens=99)
    found = ours(logits, params, answer, words)
    assert ((found > 0) == (expected > 0)).all() and found[logits.argmax()] == 0
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
