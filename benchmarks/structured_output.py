"""What a form of the answer costs: decode steps of 16 answers, constrained and free.

    python benchmarks/structured_output.py BUNDLE TOKENIZER.json --output RESULT.json

Two measurements. Decode steps of the model in BUNDLE: 16 answers of a JSON schema, or of a regular expression, and 16
free ones, in turn. With the vocabulary of TOKENIZER.json alone, 103,424 tokens say: the masks of 16 rows, which are
computed while the model computes, and by how much choosing 16 tokens takes longer with them. All are CPU times, which a
busy machine changes little.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tokenizers import Tokenizer

from ernie_export.runtime import load
from ernie_export.runtime.bench.machine import Machine
from ernie_export.runtime.constraints.compiler import GrammarCompiler
from ernie_export.runtime.logits import DenseLogits
from ernie_export.runtime.sampling import Sampler
from ernie_export.runtime.sampling_params import SamplingParams
from ernie_export.runtime.structured_outputs import StructuredOutputs

ROWS = 16
ASKED = [{"role": "user", "content": "What is in the picture?"}]
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
INVOICE = {"type": "array", "items": ITEM, "minItems": 200}
FORMS = {
    "free": None,
    "json": StructuredOutputs(json=json.dumps(INVOICE)),
    "regex": StructuredOutputs(regex="([a-z]+ )+"),
}


def step_seconds(model, form: StructuredOutputs | None, tokens: int) -> float:
    """Seconds of all cores for one decode step of 16 answers: the difference between long and short ones."""
    seconds = []
    for count in (8, 8 + tokens):
        options = {"max_new_tokens": count, "ignore_eos": True, "temperature": 1.0, "seed": 1}
        began = time.process_time()
        results = model.generate([ASKED] * ROWS, structured_outputs=form, **options)
        seconds.append(time.process_time() - began)
        assert all(len(result.tokens) == count for result in results)
    return (seconds[1] - seconds[0]) / tokens


def measure_steps(bundle: Path, rounds: int, tokens: int) -> dict[str, object]:
    """CPU milliseconds of a step of each form, and what they are more than of a free one."""
    times: dict[str, list[float]] = {name: [] for name in FORMS}
    with load(bundle) as model:
        for _ in range(rounds + 1):  # the first is not counted
            for name, form in FORMS.items():
                times[name].append(step_seconds(model, form, tokens))
    medians = {name: 1000 * statistics.median(values[1:]) for name, values in times.items()}
    more = {name: medians[name] / medians["free"] - 1 for name in FORMS if name != "free"}
    return {"rows": ROWS, "tokens": tokens, "rounds": rounds, "step_cpu_ms": medians, "more": more}


def invoice(rng: np.random.Generator) -> str:
    """An answer of the schema."""
    words = ["order", "number", "printer", "paper", "blue", "desk lamp", "Hamburg"]
    items = [
        {
            "name": " ".join(rng.choice(words, 3))[:40],
            "count": int(rng.integers(99)),
            "price": float(rng.integers(999)) / 4,
        }
        for _ in range(12)
    ]
    return json.dumps(items, indent=1)


def measure_masks(tokenizer: Path) -> dict[str, object]:
    """Times of the masks of 16 rows and of choosing 16 tokens, in milliseconds of one step."""
    backend = Tokenizer.from_file(str(tokenizer))
    vocabulary = backend.get_vocab_size()
    compiler = GrammarCompiler(SimpleNamespace(backend=backend), vocabulary, [2])  # all that it reads
    began = time.perf_counter()
    compiler.warm()
    read = time.perf_counter() - began
    began = time.perf_counter()
    grammar = compiler.compile(StructuredOutputs(json=json.dumps({**INVOICE, "minItems": 1})))
    compiled = time.perf_counter() - began
    rng = np.random.default_rng(0)
    answers = [backend.encode(invoice(rng), add_special_tokens=False).ids for _ in range(ROWS)]
    logits = DenseLogits(rng.normal(size=vocabulary).astype(np.float32))
    masks, constrained, free = (list(times) for times in zip(*_steps(grammar, answers, logits), strict=True))
    return {
        "vocabulary": vocabulary,
        "rows": ROWS,
        "read_vocabulary_s": read,
        "compile_ms": 1000 * compiled,
        "masks_ms": _quantiles(masks),
        "choose_constrained_ms": _quantiles(constrained),
        "choose_free_ms": _quantiles(free),
    }


def _steps(grammar, answers: list[list[int]], logits: DenseLogits) -> Iterator[tuple[float, float, float]]:
    params = SamplingParams()
    rows = [Sampler(params, [2], [], constraint=grammar.start()) for _ in answers]
    plain = [Sampler(params, [2], []) for _ in answers]
    for step in range(min(map(len, answers)) - 1):
        began = time.thread_time()
        for row in rows:
            row.constraint.prepare()
        masked = time.thread_time()
        for row in rows:
            row._candidates(logits).scores.argmax()
        chosen = time.thread_time()
        for row in plain:
            row._candidates(logits).scores.argmax()
        ended = time.thread_time()
        yield 1000 * (masked - began), 1000 * (chosen - masked), 1000 * (ended - chosen)
        for row, answer in zip(rows, answers, strict=True):
            row.force(answer[step])


def _quantiles(values: list[float]) -> dict[str, float]:
    return {name: float(np.quantile(values, q)) for name, q in (("median", 0.5), ("p95", 0.95), ("worst", 1.0))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result = {
        "machine": asdict(Machine.here()),
        "steps": measure_steps(options.bundle, options.rounds, options.tokens),
        "masks": measure_masks(options.tokenizer),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
