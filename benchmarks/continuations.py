"""What a decode of the benchmarks goes on with: the same random tokens for every contestant.

Answers of random weights repeat themselves, each contestant's in its own way, and with them the experts that a step
reads: from a cache of the processor, if they are few.
"""

import numpy as np

MAX_NEW_TOKENS = 256  # what a cache is made for, beside the prompt


def continuations(prompts: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Return the tokens (sequences, MAX_NEW_TOKENS) that follow each prompt, the same each time."""
    streams = (np.random.default_rng(inputs["input_ids"][0]) for inputs in prompts)
    return np.stack([stream.integers(10, 400, MAX_NEW_TOKENS) for stream in streams])
