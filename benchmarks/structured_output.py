"""What a form of the answer costs: decode steps of 16 constrained answers beside 16 free ones with the same tokens.

    python benchmarks/structured_output.py BUNDLE TOKENIZER.json --output RESULT.json

Two batches step in turn and write the same text, since the logits of its next token are raised: one must write it in
its form, the other may write anything. The difference is the form's cost, whatever else the machine does. Measured with
the model of BUNDLE, and with the vocabulary of TOKENIZER.json (trained here and written if it does not exist; it takes
a minute) and an engine that only waits for as long as a step of a released model takes. That engine gives all logits,
as a CPU's does, or the 64 highest, as a GPU's does.
"""

import argparse
import json
import statistics
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ernie_export.runtime import load
from ernie_export.runtime.answer_text import Piece
from ernie_export.runtime.batch import Batch
from ernie_export.runtime.bench.machine import Machine
from ernie_export.runtime.constraints.compiler import GrammarCompiler
from ernie_export.runtime.kv_cache import HostKVCache
from ernie_export.runtime.logits import DenseLogits, Logits, TopK, TopKLogits
from ernie_export.runtime.sampling import Sampler
from ernie_export.runtime.sampling_params import SamplingParams
from ernie_export.runtime.sequence import Prompt
from ernie_export.runtime.sequence import Sequence as Answer
from ernie_export.runtime.structured_outputs import StructuredOutputs

ROWS = 16
VOCABULARY = 103_424  # of the released models
EOS = 2
ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "count": {"type": "integer"},
        "price": {"type": "number"},
    },
    "required": ["name", "count", "price"],
    "additionalProperties": False,
}
WORDS = ["order", "number", "printer", "paper", "blue", "desk lamp", "hamburg"]
FORMS = {
    "json": StructuredOutputs(json=json.dumps({"type": "array", "items": ITEM})),
    "regex": StructuredOutputs(regex="([a-z]+ )+"),
}
SAMPLING = {"greedy": {"temperature": 0.0}, "sampled": {"temperature": 1.0, "seed": 1}}


def text_of(form: str, rng: np.random.Generator) -> str:
    """Return a text of a form."""
    if form == "regex":
        return " ".join(rng.choice(WORDS, 200)) + " "
    items = [
        {
            "name": " ".join(rng.choice(WORDS, 3))[:40],
            "count": int(rng.integers(99)),
            "price": float(rng.integers(999)) / 4,
        }
        for _ in range(40)
    ]
    return json.dumps(items, indent=1)


def train_tokenizer(path: Path) -> None:
    """Write a tokenizer of the released size, whose tokens keep to one script, as SentencePiece's do."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="never"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.UnicodeScripts(),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=tokens, limit_alphabet=3000, max_token_length=16
    )
    files = sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")) + sorted(
        Path(sysconfig.get_path("stdlib")).rglob("*.py")
    )
    tokenizer.train_from_iterator((file.read_text(errors="ignore") for file in files[:9000]), trainer)
    tokenizer.save(str(path))


class Scripted:
    """An engine whose answers are given texts: it raises the logit of each row's next token."""

    def __init__(self, engine, plans: Sequence[Sequence[int]]) -> None:
        self.max_prefill_chunk = engine.max_prefill_chunk
        self.new_cache = engine.new_cache
        self._engine = engine
        self._plans = plans
        self._begun = 0
        self._step = 0

    def prefill(self, cache, slot, chunk) -> Logits:
        logits = raised(self._engine.prefill(cache, slot, chunk), self._plans[self._begun][0])
        self._begun += 1
        return logits

    def decode(self, cache, tokens, positions) -> list[Logits]:
        self._step += 1
        rows = self._engine.decode(cache, tokens, positions)
        return [raised(logits, plan[self._step]) for logits, plan in zip(rows, self._plans, strict=True)]


def raised(logits: Logits, token: int) -> Logits:
    """Return logits of which `token` has the highest."""
    best = logits.topk()
    if best is None:
        values = logits.full().copy()
        values[token] = values.max() + 30
        return DenseLogits(values)
    ids = np.concatenate([[token], best.ids[best.ids != token]])[: len(best.ids)]
    values = np.concatenate([[best.values[0] + 30], best.values])[: len(ids)]

    def fetch() -> np.ndarray:
        every = logits.full().copy()
        every[token] = values[0]
        return every

    return TopKLogits(TopK(ids, values, best.total + 30), fetch)


class Waiting:
    """An engine that computes nothing, and gives its logits after a time."""

    max_prefill_chunk = 512

    def __init__(self, vocabulary: int, seconds: float, highest: int) -> None:
        """`highest`: How many of the highest logits it gives; 0 for all."""
        self._seconds = seconds
        values = np.random.default_rng(0).normal(size=vocabulary).astype(np.float32)
        order = np.argsort(-values)[:highest]
        dense = DenseLogits(values)
        self._logits = TopKLogits(TopK(order, values[order], float(values.sum())), values.copy) if highest else dense

    def new_cache(self, num_slots: int, max_seq_len: int) -> HostKVCache:
        return HostKVCache(
            num_layers=1,
            num_slots=num_slots,
            num_kv_heads=1,
            max_seq_len=max_seq_len,
            head_dim=1,
            dtype=np.dtype(np.float32),
        )

    def prefill(self, cache, slot, chunk) -> Logits:
        cache.lengths[slot] += len(chunk.input_ids)
        return self._logits

    def decode(self, cache, tokens, positions) -> list[Logits]:
        cache.lengths[: len(tokens)] += 1
        time.sleep(self._seconds)
        return [self._logits] * len(tokens)


class NoText:
    """In place of an answer's text: both batches would write the same."""

    stopped = False

    def forced_token(self) -> None:
        return None

    def push(self, token: int) -> Piece:
        return Piece()

    def finish(self) -> Piece:
        return Piece()


def prompt(hidden: int) -> Prompt:
    zeros = np.zeros(4, np.int64)
    ids = np.array([5, 6, 7, 8])
    features = np.zeros((0, hidden), np.float32)
    return Prompt(ids, zeros, zeros, np.tile(np.arange(4), (3, 1)), features, np.zeros((4, 3), np.int64))


def compare(
    engine, hidden: int, backend: Tokenizer, compiler: GrammarCompiler, form: str, steps: int
) -> dict[str, object]:
    """Return the times of a step of free rows, and by how many microseconds a row constrained ones take longer.

    The time of the thread that steps is what the form adds to a step where its masks are computed in time; the time of
    all cores has the masks too. Neither counts what other programs take.
    """
    rng = np.random.default_rng(0)
    plans = [backend.encode(text_of(form, rng), add_special_tokens=False).ids for _ in range(ROWS)]
    grammar = compiler.compile(FORMS[form])
    result: dict[str, object] = {}
    for name, options in SAMPLING.items():
        params = SamplingParams(max_new_tokens=steps + 9, **options)
        batches = []
        for constrained in (False, True):
            batch = Batch(Scripted(engine, plans), num_slots=ROWS, max_seq_len=steps + 64, enable_prefix_caching=False)
            for _ in range(ROWS):
                constraint = grammar.start() if constrained else None
                sampler = Sampler(params, [EOS], [], constraint=constraint)
                batch.add(Answer(prompt(hidden), sampler, NoText(), frozenset([EOS]), params.max_new_tokens))
            batches.append(batch)
        steps_of = [list(values) for values in zip(*_times(batches, steps), strict=True)]
        for batch in batches:
            for row, plan in zip(batch.running, plans, strict=True):
                assert row.tokens == plan[: steps + 1], row.error
        free, free_cpu, more, more_main, more_cpu = (statistics.median(values) for values in steps_of)
        result[name] = {
            "step_ms": 1000 * free,
            "step_cpu_ms": 1000 * free_cpu,
            "more_us_a_row": 1e6 * more / ROWS,
            "more_main_cpu_us_a_row": 1e6 * more_main / ROWS,
            "more_cpu_us_a_row": 1e6 * more_cpu / ROWS,
        }
    return result


def _times(batches: Sequence[Batch], steps: int) -> Iterator[tuple[float, ...]]:
    """Yield the seconds of each free step and of its cores, and what a constrained one takes more.

    That is by the clock, of the thread that steps, and of all cores.
    """
    clocks = (time.perf_counter, time.thread_time, time.process_time)
    for step in range(steps):
        taken = [[0.0] * len(clocks), [0.0] * len(clocks)]
        for index in (0, 1) if step % 2 else (1, 0):
            began = [clock() for clock in clocks]
            batches[index].step()
            taken[index] = [clock() - start for clock, start in zip(clocks, began, strict=True)]
        free, constrained = taken
        yield (free[0], free[2], *(c - f for f, c in zip(free, constrained, strict=True)))


def measure_bundle(bundle: Path, steps: int) -> dict[str, object]:
    with load(bundle) as model:
        backend = model.preprocessor.chat.tokenizer.backend
        hidden = model.manifest.model.hidden_size
        return {form: compare(model.engine, hidden, backend, model.grammars, form, steps) for form in FORMS}


def measure_vocabulary(path: Path, steps: int, step_ms: float) -> dict[str, object]:
    if not path.exists():
        train_tokenizer(path)
    backend = Tokenizer.from_file(str(path))
    vocabulary = backend.get_vocab_size()
    compiler = GrammarCompiler(SimpleNamespace(backend=backend), vocabulary, [EOS])  # all that it reads
    began = time.perf_counter()
    compiler.warm()
    result: dict[str, object] = {"vocabulary": vocabulary, "read_vocabulary_s": time.perf_counter() - began}
    began = time.perf_counter()
    compiler.compile(FORMS["json"])
    result["compile_ms"] = 1000 * (time.perf_counter() - began)
    for name, highest in (("all logits", 0), ("64 highest", 64)):
        engine = Waiting(vocabulary, step_ms / 1000, highest)
        result[name] = {form: compare(engine, 1, backend, compiler, form, steps) for form in FORMS}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--step-ms", type=float, default=10.0, help="milliseconds of a step of the engine that waits")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result = {
        "machine": asdict(Machine.here()),
        "rows": ROWS,
        "steps": options.steps,
        "bundle": measure_bundle(options.bundle, options.steps),
        "released": measure_vocabulary(options.tokenizer, options.steps, options.step_ms),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
