"""A model that answers what it is asked to say, by the real template, tokenizer, scheduler and server."""

import re
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from ernie_export.common.manifest import Manifest
from ernie_export.runtime.constraints.grammar import Grammar
from ernie_export.runtime.engines import Engine
from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.preprocess import Preprocessor
from ernie_export.runtime.sampling import Sampler
from ernie_export.runtime.sampling_params import SamplingParams
from ernie_export.runtime.scheduler_config import SchedulerConfig
from ernie_export.runtime.sequence import Prompt, Sequence
from tests.fakes.engine import FakeEngine

ASKED = re.compile(r".*say:(.*?)(?:\nAssistant: |\Z)", re.DOTALL)  # in a prompt of the mini checkpoint's template


class EchoSampler(Sampler):
    """A sampler that chooses given tokens, and then the end token."""

    def __init__(self, params: SamplingParams, end: int, prompt: Prompt, tokens: list[int]) -> None:
        super().__init__(params, (end,), prompt.input_ids)
        self._left = chain(tokens, repeat(end))

    def next(self, logits: Any) -> int:
        return self.force(next(self._left))


class EchoModel(Model):
    """A model whose answer is what stands after the last "say:" of the prompt, special tokens included."""

    def begin(
        self, prompt: Prompt, params: SamplingParams, grammar: Grammar | None = None, split_thoughts: bool = True
    ) -> Sequence:
        sequence = super().begin(prompt, params, grammar, split_thoughts)
        backend = self.preprocessor.chat.tokenizer.backend
        found = ASKED.match(backend.decode(prompt.input_ids.tolist(), skip_special_tokens=False))
        tokens = backend.encode(found[1], add_special_tokens=False).ids if found else []
        sequence.sampler = EchoSampler(params, min(sequence.ends), prompt, tokens)
        return sequence


def echo_model(folder: Path, config: SchedulerConfig, engine: Engine[Any] | None = None) -> EchoModel:
    """Return the model of a bundle's manifest, template and tokenizer; its weights are not read."""
    manifest = Manifest.read(folder)
    info = manifest.model
    fake = FakeEngine(vocabulary=info.vocab_size, hidden=info.hidden_size, end=min(info.eos_token_ids))
    preprocessor = Preprocessor.from_folder(folder)
    return EchoModel(manifest, preprocessor, engine or fake, config)
