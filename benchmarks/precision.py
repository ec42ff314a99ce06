"""What each precision costs: size, divergence from float32, routing, and answers to held-out questions.

    python benchmarks/precision.py examples/mini-ernie --count 25
    python benchmarks/precision.py examples/mini-ernie --count 25 --outliers 64 --out ...

Exports the checkpoint once for each precision, and once for each calibration file: `int4/3@100` is int4 calibrated on 3
conversations of each kind drawn from seed 100. Each bundle is compared with PyTorch in float32 as ernie-verify does
(pictures of random tiles). Then it reads held-out questions with their right answers, one token after the other: at
each token its distribution is compared with that of the float32 bundle, and a question counts as answered word for word
if every token of the answer, its end included, is the bundle's first choice.

`--outliers F` measures a checkpoint that computes the same function with F times larger activations in a few channels,
as those of large language models have them, and weights that are F times smaller there.

Needs the extras export and parity, and runs from the repository, since the questions are made by tools/heldout.py.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnxruntime

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tools")]

import torchvision_operators  # noqa: E402, F401  (before transformers)
from calibration_file import write as write_calibration  # noqa: E402
from heldout import FAMILIES, KINDS, for_runtime, heldout  # noqa: E402
from outliers import with_outliers  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress as Bars  # noqa: E402
from rich.table import Table  # noqa: E402

from ernie_export.common.manifest import Manifest  # noqa: E402
from ernie_export.exporter.export import Progress, export  # noqa: E402
from ernie_export.exporter.verify.comparison import divergence  # noqa: E402
from ernie_export.exporter.verify.conversations import example_conversations  # noqa: E402
from ernie_export.exporter.verify.verify import verify  # noqa: E402
from ernie_export.runtime.pipeline import Model, load  # noqa: E402
from ernie_export.runtime.preprocess.chat import chat_variables  # noqa: E402

QUIET = Progress()


@dataclass(frozen=True)
class Question:
    """A held-out question, with the options of `Model.generate`, and its right answer."""

    family: str
    messages: list[dict[str, Any]]
    options: dict[str, Any]
    answer: str


@dataclass(frozen=True)
class Cost:
    """One precision. mib: all files. tiles_*: on ernie-verify's conversations. kl: mean over the answers' tokens, nats,
    with its standard error over questions. right: answers by family, of `asked`.
    """

    precision: str
    mib: float
    tiles_kl: float
    routing_agreed: float
    kl: float
    kl_error: float
    first_choice_agreed: float
    asked: dict[str, int]
    right: dict[str, int]

    @property
    def accuracy(self) -> float:
        """Share of all questions answered word for word."""
        return sum(self.right.values()) / sum(self.asked.values())

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        n = sum(self.asked.values())
        p = self.accuracy
        z = 1.96
        middle = p + z * z / (2 * n)
        width = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        return (middle - width) / (1 + z * z / n), (middle + width) / (1 + z * z / n)


def questions(count: int, seed: int) -> list[Question]:
    """`count` held-out questions of each kind."""
    return [
        Question(KINDS[kind], *for_runtime(sample), sample.answer)
        for kind in KINDS
        for sample in heldout(kind, count, seed)
    ]


def read_answer(model: Model, question: Question) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (n,) of the right answer and the logits (n, V) before each, all earlier ones being read."""
    tokens = [*model.preprocessor.chat.encode(question.answer), model.manifest.model.eos_token_ids[0]]
    prompt = model.prompt(model.preprocessor.prepare(question.messages, variables=chat_variables(**question.options)))
    cache = model.engine.new_cache(1, len(prompt.input_ids) + len(tokens))
    logits = [model.engine.prefill(cache, 0, prompt.chunk(0, len(prompt.input_ids))).full().copy()]
    for count, token in enumerate(tokens[:-1], 1):
        step = model.engine.decode(cache, np.array([token]), prompt.position_ids[:, -1:] + count)
        logits.append(np.array(step[0].full()))
    return np.array(tokens), np.stack(logits)


@contextmanager
def exported(checkpoint: Path, name: str) -> Iterator[tuple[Path, Manifest]]:
    """A bundle in the precision that `name` begins with, calibrated if it says so: see the module."""
    precision, _, data = name.partition("/")
    with TemporaryDirectory() as folder:
        conversations = None
        if data:
            count, seed = map(int, data.split("@"))
            conversations = Path(folder) / "conversations.json"
            write_calibration(conversations, count, seed)
        bundle = Path(folder) / "bundle"
        yield bundle, export(checkpoint, bundle, "onnx", precision, QUIET, conversations=conversations)


def measure(
    checkpoint: Path, name: str, asked: list[Question], float32: list[np.ndarray], bars: Bars, compare: bool
) -> Cost:
    """Export, compare, read; what the first call reads is taken for `float32`, and put there."""
    with exported(checkpoint, name) as (bundle, manifest):
        task = bars.add_task(f"{name}: comparing", total=len(asked))
        report = verify(bundle, checkpoint, None, example_conversations(), [], lambda name: None)
        bars.update(task, description=f"{name}: reading")
        right = Counter({question.family: 0 for question in asked})
        spread = []
        agreed = []
        with load(bundle, threads=1) as model:
            for number, question in enumerate(asked):
                tokens, logits = read_answer(model, question)
                if not compare:
                    float32.append(logits)
                spread.append(divergence(float32[number], logits))
                agreed.append(logits.argmax(-1) == float32[number].argmax(-1))
                right[question.family] += bool((logits.argmax(-1) == tokens).all())
                bars.advance(task)
    routed = [stage for stage in report.probes.values() if stage.routed]
    lengths = np.array([len(part) for part in spread])
    kl = float(np.concatenate(spread).mean())
    # Tokens of one question go together: the error of a ratio of sums over questions.
    residues = np.array([part.sum() for part in spread]) - kl * lengths
    return Cost(
        name,
        sum(entry.bytes for entry in manifest.files.values()) / 2**20,
        report.kl,
        sum(stage.agreed for stage in routed) / sum(stage.routed for stage in routed),
        kl,
        float(np.sqrt((residues**2).sum()) / lengths.sum()),
        float(np.concatenate(agreed).mean()),
        dict(Counter(question.family for question in asked)),
        dict(right),
    )


def show(costs: list[Cost], console: Console) -> None:
    """One row a precision."""
    families = list(FAMILIES)
    columns = ("precision", "MiB", "KL on tiles", "routing", "KL on answers", "first choice", *families, "all")
    table = Table(*columns, title="against float32, and right answers", title_justify="left")
    for cost in costs:
        shares = [f"{100 * cost.right[family] / cost.asked[family]:.1f}" for family in families]
        low, high = cost.interval
        table.add_row(
            cost.precision,
            f"{cost.mib:.1f}",
            f"{cost.tiles_kl:.1e}",
            f"{100 * cost.routing_agreed:.1f}",
            f"{cost.kl:.1e} ± {cost.kl_error:.0e}",
            f"{100 * cost.first_choice_agreed:.2f}",
            *shares,
            f"{100 * cost.accuracy:.1f} ({100 * low:.1f}..{100 * high:.1f})",
        )
    console.print(table)


@click.command(context_settings={"show_default": True})
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--precisions", default="fp32,fp16,int8,int4,int4/3@100,int4/3@101,int4/3@102", help="fp32 first.")
@click.option("--count", default=25, help="Questions of each kind.")
@click.option("--seed", default=0)
@click.option("--outliers", default=0, help="Times that some channels are enlarged; 0: none.")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "benchmarks" / "results" / "precision-mini.json")
def main(checkpoint: Path, precisions: str, count: int, seed: int, outliers: int, out: Path) -> None:
    """Measure every precision of CHECKPOINT."""
    asked = questions(count, seed)
    float32: list[np.ndarray] = []
    costs = []
    with Bars(console=Console(stderr=True)) as bars, TemporaryDirectory() as folder:
        measured = checkpoint
        if outliers:
            measured = Path(folder) / "outliers"
            with_outliers(checkpoint, measured, float(outliers))
        for name in precisions.split(","):
            costs.append(measure(measured, name, asked, float32, bars, compare=bool(costs)))
    show(costs, Console(width=180))
    command = f"python benchmarks/precision.py {checkpoint} --precisions {precisions} --count {count} --seed {seed}"
    command += f" --outliers {outliers}" if outliers else ""
    rows = [asdict(cost) | {"accuracy": cost.accuracy, "interval": cost.interval} for cost in costs]
    document = {"command": command, "onnxruntime": onnxruntime.__version__, "precisions": rows}
    out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
