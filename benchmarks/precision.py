"""What each precision costs: size, divergence from float32, routing, and answers to held-out questions.

    python benchmarks/precision.py examples/mini-ernie --count 100

Exports the checkpoint once for each precision, compares each bundle with PyTorch in float32 as ernie-verify does, and
asks it questions about scenes that it was not trained on. Needs the extras export and parity, and runs from the
repository, since the scenes are made by tools/scenes.py.
"""

import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import onnxruntime

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tools")]

import standin  # noqa: E402, F401  (before transformers)
from ernie_export.exporter.export import Progress, export  # noqa: E402
from ernie_export.exporter.verify import verify  # noqa: E402
from ernie_export.runtime import load  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress as Bars  # noqa: E402
from rich.table import Table  # noqa: E402
from scenes import FAMILIES, KINDS, heldout  # noqa: E402

QUIET = Progress(lambda name, total: None, lambda count: None)
LONGEST_ANSWER = 32


@dataclass(frozen=True)
class Cost:
    """One precision. mib: all files; kl: mean, in nats; agreed, routed: shares; right: answers by family of `asked`."""

    precision: str
    mib: float
    kl: float
    first_choice_agreed: float
    routing_agreed: float
    asked: dict[str, int]
    right: dict[str, int]

    @property
    def accuracy(self) -> float:
        """Share of all questions answered word for word."""
        return sum(self.right.values()) / sum(self.asked.values())


def conversations(count: int, seed: int) -> list[tuple[str, list[dict[str, Any]], str]]:
    """(family, messages, answer) of `count` held-out questions of each kind, clips as the runtime takes them."""

    def part(given: dict[str, Any]) -> dict[str, Any]:
        if given["type"] != "video":
            return given
        return {"type": "video", "video": given["video"].frames, "fps": given["video"].fps}

    return [
        (family, [turn | {"content": [part(p) for p in turn["content"]]} for turn in sample.messages], sample.answer)
        for kind, family in KINDS.items()
        for sample in heldout(kind, count, seed)
    ]


def measure(checkpoint: Path, precision: str, asked: list[Any], bars: Bars) -> Cost:
    """Export, compare, ask."""
    with TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        manifest = export(checkpoint, bundle, "onnx", precision, QUIET)
        task = bars.add_task(f"{precision}: comparing", total=len(asked))
        report = verify(bundle, checkpoint, None, [], lambda name: None)
        bars.update(task, description=f"{precision}: asking")
        right = Counter({family: 0 for family, _, _ in asked})
        with load(bundle) as model:
            for family, messages, answer in asked:
                right[family] += model.generate(messages, max_new_tokens=LONGEST_ANSWER).text == answer
                bars.advance(task)
    routed = [stage for stage in report.stages.values() if stage.routed]
    return Cost(
        precision,
        sum(entry.bytes for entry in manifest.files.values()) / 2**20,
        report.kl,
        sum(case.agreed for case in report.cases) / sum(case.tokens for case in report.cases),
        sum(stage.agreed for stage in routed) / sum(stage.routed for stage in routed),
        dict(Counter(family for family, _, _ in asked)),
        dict(right),
    )


def show(costs: list[Cost], console: Console) -> None:
    """One row a precision."""
    families = [family for family, (_, kinds) in FAMILIES.items() if kinds]
    columns = ("precision", "MiB", "KL, nats", "first choice", "routing", *families, "all")
    table = Table(*columns, title="against float32, and right answers", title_justify="left")
    for cost in costs:
        shares = [f"{100 * cost.right[family] / cost.asked[family]:.1f}" for family in families]
        agreed = [f"{100 * share:.1f}" for share in (cost.first_choice_agreed, cost.routing_agreed)]
        table.add_row(
            cost.precision, f"{cost.mib:.1f}", f"{cost.kl:.1e}", *agreed, *shares, f"{100 * cost.accuracy:.1f} %"
        )
    console.print(table)


@click.command(context_settings={"show_default": True})
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--precisions", default="fp32,fp16,int8,int4", help="What the CPU runs.")
@click.option("--count", default=100, help="Questions of each kind.")
@click.option("--seed", default=0)
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "benchmarks" / "results" / "precision-mini.json")
def main(checkpoint: Path, precisions: str, count: int, seed: int, out: Path) -> None:
    """Measure every precision of CHECKPOINT."""
    asked = conversations(count, seed)
    with Bars(console=Console(stderr=True)) as bars:
        costs = [measure(checkpoint, precision, asked, bars) for precision in precisions.split(",")]
    show(costs, Console(width=140))
    command = f"python benchmarks/precision.py {checkpoint} --precisions {precisions} --count {count} --seed {seed}"
    rows = [asdict(cost) | {"accuracy": cost.accuracy} for cost in costs]
    document = {"command": command, "onnxruntime": onnxruntime.__version__, "precisions": rows}
    out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
