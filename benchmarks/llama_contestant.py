"""llama.cpp as a contestant, on a GGUF of make_gguf.py, through the functions that llama-cpp-python binds."""

from pathlib import Path
from typing import Any

import numpy as np
from continuations import continuations


class LlamaCpp:
    """llama.cpp on text, with its defaults. repacked: weights rearranged at load for the processor, the default.

    Otherwise products read the file's own layout, mapped: a start takes less, and so does memory.
    """

    ids = {"image": -1, "image_start": -1, "image_end": -1}  # it has none

    def __init__(self, gguf: Path, threads: int, repacked: bool) -> None:
        import llama_cpp

        self.lib = llama_cpp
        self.threads = threads
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = repacked
        self.model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), params)
        if not self.model:
            raise ValueError(f"{gguf}: llama.cpp could not load it")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.contexts: dict[tuple[int, int], Any] = {}

    def prefill(self, prompts: list[dict[str, np.ndarray]], max_new_tokens: int) -> None:
        """Prompts, of equal length, to the first token of each."""
        if any("pixel_values" in inputs for inputs in prompts):
            raise NotImplementedError("no vision for this model")
        length = prompts[0]["input_ids"].shape[1]
        self.context = self.context_of(len(prompts), length + max_new_tokens)
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), False)
        self.position = 0
        for number, inputs in enumerate(prompts):
            self.found = self.run(inputs["input_ids"], [number])
        self.given = iter(continuations(prompts).T[..., None])
        self.position = length

    def decode(self, tokens: int) -> None:
        """Further steps of all sequences, a token of each in one batch."""
        for _ in range(tokens):
            given = next(self.given)
            self.found = self.run(given, list(range(len(given))))
            self.position += 1

    def context_of(self, sequences: int, length: int) -> Any:
        """Return the context for so many sequences of so many tokens; it is kept, since making one takes a while."""
        key = sequences, length
        if key not in self.contexts:
            params = self.lib.llama_context_default_params()
            params.n_ctx = sequences * length
            params.n_seq_max = sequences
            params.n_threads = params.n_threads_batch = self.threads
            self.contexts[key] = self.lib.llama_init_from_model(self.model, params)
            if not self.contexts[key]:
                raise ValueError(f"llama.cpp made no context for {sequences} sequences of {length} tokens")
        return self.contexts[key]

    def run(self, tokens: np.ndarray, sequences: list[int]) -> np.ndarray:
        """Append tokens (sequences, n); returns the likeliest next token of each sequence."""
        rows, length = tokens.shape
        batch = self.lib.llama_batch_init(tokens.size, 0, 1)
        batch.n_tokens = tokens.size
        for index, token in enumerate(tokens.flat):
            row, column = divmod(index, length)
            batch.token[index] = token
            batch.pos[index] = self.position + column
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequences[row]
            batch.logits[index] = column == length - 1
        failed = self.lib.llama_decode(self.context, batch)
        self.lib.llama_batch_free(batch)
        if failed:
            raise RuntimeError(f"llama_decode: expected 0, found {failed}")
        last = (length * (row + 1) - 1 for row in range(rows))
        logits = (
            np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, i), (self.vocabulary,)) for i in last
        )
        return np.array([row.argmax() for row in logits])
