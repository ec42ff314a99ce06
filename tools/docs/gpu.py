"""The page of GPU figures: what arithmetic predicts, beside what the newest result of benchmarks/gpu.py measured."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tools.docs.tables import RESULTS, read_result, table

Span = tuple[float, float]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Unit:
    """How a figure is written: `size` in the unit of the result's rows."""

    name: str
    size: float
    digits: int = 0

    def write(self, value: float) -> str:
        return f"{value / self.size:,.{self.digits}f}"


MICROSECONDS = Unit("µs", 1e-6)
MILLISECONDS = Unit("ms", 1e-3, 1)
SECONDS = Unit("s", 1.0)
GIB = Unit("GiB", 1.0, 1)


@dataclass(frozen=True)
class Prediction:
    """One figure of one row of the benchmark.

    Attributes:
        label: What it is.
        row: Entries of the row that measures it.
        figure: Its entry with the figure.
        unit: Of the figures below, and of what is written.
        h100: Lowest and highest that is expected on an H100; None where only the bytes are known.
        h200: The same on an H200.
        least: What bytes, or operations, take at the GPU's full rate, on an H100 and on an H200.
    """

    label: str
    row: Row
    figure: str
    unit: Unit
    h100: Span | None = None
    h200: Span | None = None
    least: Span | None = None

    def expected(self, place: int) -> str:
        """Return the text for the H100 (0) or the H200 (1)."""
        parts = []
        if self.least is not None:
            parts.append(f"≥ {self.least[place]:g}")
        if (span := (self.h100, self.h200)[place]) is not None:
            parts.append(f"{span[0]:g} to {span[1]:g}" if span[0] != span[1] else f"{span[0]:g}")
        return f"{'; '.join(parts)} {self.unit.name}"

    def measured(self, rows: list[Row]) -> str:
        """Return the figure of the row that has the entries, "not run" if none has."""
        for row in rows:
            if self.figure in row and all(row.get(key) == value for key, value in self.row.items()):
                return f"{self.unit.write(row[self.figure])} {self.unit.name}"
        return "not run"


def decode_steps() -> Iterator[Prediction]:
    """Bytes of a step over the memory's rate, and about 1,120 launches of a captured step, 2.1 µs each."""
    for precision, what, least, launches in (
        ("bf16", "ours", {1: (2.3, 1.6), 8: (8.6, 6.0), 32: (14.8, 10.3)}, (2.3, 2.8)),
        ("int4-fp16", "ours-int4", {1: (0.65, 0.45), 8: (2.4, 1.7), 32: (4.4, 3.1)}, (2.7, 3.2)),
    ):
        for rows, (h100, h200) in least.items():
            spans = [(round(nbytes + launches[0], 1), round(nbytes + launches[1], 1)) for nbytes in (h100, h200)]
            label = f"decode step, {rows} sequence{'s' * (rows > 1)}, {precision}"
            row = {"what": what, "by": precision, "rows": rows}
            yield Prediction(label, row, "step_seconds", MILLISECONDS, spans[0], spans[1], (h100, h200))


def kernels() -> Iterator[Prediction]:
    """The plugins' kernels of one layer: bytes, and what launches and instructions add (docs/guides/tensorrt.md)."""
    for weights, tokens, figure, least, h100, h200 in (
        ("", 1, "seconds", (47, 33), (57, 60), (43, 46)),
        (" int4", 1, "seconds", (12, 9), (20, 23), (17, 20)),
        (" fp8", 1, "seconds", (24, 17), (32, 35), (25, 28)),
        ("", 1, "in engines of more sequences", (47, 33), (61, 64), (47, 50)),
        (" int4", 1, "in engines of more sequences", (12, 9), (24, 27), (21, 24)),
        (" fp8", 1, "in engines of more sequences", (24, 17), (36, 39), (29, 32)),
        ("", 8, "seconds", (275, 192), (330, 370), (240, 280)),
        (" int4", 8, "seconds", (72, 50), (90, 115), (85, 110)),
        (" fp8", 8, "seconds", (141, 99), (160, 190), (125, 155)),
        ("", 64, "seconds", (503, 351), (560, 620), (430, 480)),
        ("", 512, "seconds", (503, 351), (570, 620), (440, 480)),
        (" fp8", 512, "seconds", (256, 179), (320, 340), (270, 290)),
        (" int4", 512, "seconds", (133, 93), (270, 300), (270, 300)),
        ("", 1024, "seconds", (507, 354), (620, 700), (490, 560)),
        (" fp8", 1024, "seconds", (260, 183), (480, 560), (480, 560)),
        (" int4", 1024, "seconds", (182, 183), (540, 600), (540, 600)),
    ):
        label = f"expert kernels,{weights or ' bf16'}, {tokens} token{'s' * (tokens > 1)}"
        label += " in an engine of more than two sequences" if figure != "seconds" else ""
        row = {"what": f"moe{weights}, text experts", "tokens": tokens}
        yield Prediction(label, row, figure, MICROSECONDS, h100, h200, least)


PREDICTIONS = (
    *decode_steps(),
    *(
        Prediction(
            f"prefill of 1,282 tokens in {chunks}, bf16",
            {"what": "ours", "precision": "bf16", "tokens": 1282},
            figure,
            MILLISECONDS,
            least=least,
        )
        for chunks, figure, least in (("one chunk", "prefill", (20, 14)), ("chunks of 512", "prefill_by_512", (55, 39)))
    ),
    Prediction(
        "first calls at load, bf16 (an estimate)",
        {"what": "ours", "precision": "bf16", "slots": 1},
        "warm_seconds",
        SECONDS,
        (60, 120),
        (45, 90),
    ),
    Prediction(
        "device memory that later calls add",
        {"what": "ours", "precision": "bf16"},
        "grown_gib",
        GIB,
        (0, 0),
        (0, 0),
    ),
    Prediction(
        "all memory, one slot of 8,192 tokens, int4-fp16",
        {"what": "ours-int4", "precision": "int4-fp16", "context": 8192},
        "gib",
        GIB,
        (20.5, 20.5),
        (20.5, 20.5),
    ),
    *kernels(),
)


def newest() -> Any | None:
    """Return the newest result of benchmarks/gpu.py on a GPU; None where there is none."""
    names = sorted(path.stem for path in RESULTS.glob("gpu-*.json") if not path.stem.endswith("-dry"))
    return read_result(names[-1]) if names else None


def rows_of(result: Any | None) -> list[Row]:
    """Return the rows of all parts of a result."""
    return [] if result is None else [row for part in result["parts"].values() for row in part["rows"]]


def predictions_table(result: Any | None) -> str:
    """Return the table of every prediction, beside what was measured."""
    rows = rows_of(result)
    cells = [[p.label, p.expected(0), p.expected(1), p.measured(rows)] for p in PREDICTIONS]
    return table(["what", "predicted H100", "predicted H200", "measured"], cells)


def gpu_page() -> str:
    """Return the page."""
    result = newest()
    return f"""\
# GPU: predicted and measured

{measured_on(result)}

The released model's shape with random weights: `benchmarks/gpu_model.py` for ONNX Runtime's CUDA provider,
`benchmarks/gpu_kernels.py` for the plugins' kernels. Rates assumed: H100 3.0 TB/s, H200 4.3 TB/s, about 800 TFLOP/s in bf16.
A step of one sequence is about 1,120 launches (about 40 in each of 27 sparse layers, and 40 beside them) of about 2.1 µs.
That is more than its bytes take: one sequence in bf16 is predicted at 44 to 49 % of what the memory allows on an H100 and at 36
to 40 % on an H200, below the goal of 50 %. Steps of 8 and 32 sequences are taken to hit experts independently of each other.
A step in int4 has about 1,240. After ≥ stands what bytes, or operations, take at the full rate.

{predictions_table(result)}

By these figures the plugins' kernels miss two goals. At one token 80 % of the memory's rate is reached by bf16 on an H100 alone
(78 to 82 %; 72 to 77 % on an H200); fp8 comes to 61 to 75 %, int4 to 45 to 60 %, because three launches and the router take 8
to 13 µs whatever the bytes. In a prompt int4 takes 2.0 to 3.3 times the least time, where 1.5 was the goal, and fp8 at 1,024
tokens 1.8 to 3.1: making numbers of the weights takes longer than reading them
([what was considered](../guides/tensorrt.md#plugins-and-kernels)).

On stand-ins for CUDA's memory, later calls took 0.6 MB, for a larger picture. Not predicted: the error of logits against a CPU
(`right`; the goal is at most 5e-3), transformers' own steps (the goal is 5 times their rate at one sequence), `grouped_mm` of
PyTorch beside the kernels (the goal is to be ahead at 1, 8, 64 and 1,024 tokens), and the sweep over tactics.

Launches of a captured step, counted on stand-ins for CUDA's libraries without those of cuBLAS (`tools/cuda_stub/check.py`, tiny
shape of one dense and two sparse layers): 97 in fp16 and bf16, 106 or 108 in int4-fp16, by the number of sequences. It was 111 and 123 with a sum and its norm as two
operators (2 a layer), with the smallest divisor of routing weights where the checkpoint's biases leave it without effect (6
a sparse layer), and with gate and up apart: as one matrix they are one product of cuBLAS's fewer and one split more. Queries
and keys are rotated apart, each between two casts. Rotated as one tensor they would take 2 launches a layer fewer, 56 of 1,120 and
0.12 ms of a step; the scale of attention, which stands in the queries' tables, would have to go to each target's attention.

Two settings of the provider are left as they are, and the sequence below measures neither. `ORT_FORCE_DETERMINISTIC_MOE=1` in the
environment takes its first kernel for experts in place of the fastest, which leaves the first calls' trials out;
`ep.cuda.fpa_intb_gemm=1`, an option of a session, takes CUTLASS kernels for the linear layers' quantized weights.

Decode steps are not rounded up to powers of two of sequences. The provider times its kernels by such powers, all of them at
load; a captured graph costs one step, once for each number of sequences. Eight sequences reach 35 of 64 experts where five
reach 25 (64 · (1 − (58/64)ⁿ)): rounding would read up to two fifths more of the experts' bytes in every step.

## The sequence on a machine without a network

A call carries 64 MiB and lasts ten minutes at most; what a command writes to `$OUT` comes back, and every row is appended there
as it is measured. Parts of a wheel of onnxruntime-gpu take five calls, in which the kernels ride; the last installs it into
/tmp/site. The sweep begins with the most tokens, whose tactic is open, and compiles as it goes: 60 s end before its last rows.

<!-- not run: needs a GPU -->
```bash
timeout 170 python3 benchmarks/gpu_kernels.py --only moe --only rope       # with the first part
timeout 90 python3 benchmarks/gpu_kernels.py --only sweep --seconds 60     # with the second
export PYTHONPATH=/tmp/site                                                # with the last, once the wheel is installed
timeout 60 python3 benchmarks/gpu_model.py --only right
timeout 170 python3 benchmarks/gpu_model.py --only ours                    # most of it are the first calls
timeout 110 python3 benchmarks/gpu_model.py --only transformers
timeout 120 python3 benchmarks/gpu_model.py --only ours-int4               # what time is left
timeout 45 python3 benchmarks/gpu_probe.py                                 # RTX's support lists do not name compute capability 9.0
```

`python benchmarks/gpu.py --device cpu --small` rehearses all of it on a CPU, as the tests do.
"""


def measured_on(result: Any | None) -> str:
    """Return what the page says of the measurement, or of its absence."""
    if result is None:
        return """\
!!! warning "Nothing here was measured"
    No GPU was at hand. The predictions are arithmetic, so that a measurement can prove them wrong."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"Measured on {result['date']} on {result['card']} with `{result['command']}` ({versions})."
