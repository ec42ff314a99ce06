"""Where a CPU's time goes, from the results of benchmarks/profile_operators.py."""

from typing import Any

from tools.docs.tables import find_result, machine_text, percent, read_result, table

NAMES = ("profile-m600-fp32", "profile-m600-int8", "profile-m600-int4")
PROTOTYPES = {  # names of grouped_experts.py, and the page's
    "product for each expert": "a product for each expert",
    "of integers": "a product of integers for each expert",
}
WAYS = ("a scale for each group", "a scale for each row")  # of integer_products.py
LINEAR = ("MatMulNBits", "Gemm", "MatMul", "FusedMatMul")
ATTENTION = ("MultiHeadAttention", "GroupQueryAttention")
EXPERTS = ("MoE", "QMoE")
INTEGERS = "PyTorch int8 GFLOP/s"
SLOWED = 1.15
LEAST = 0.02  # share of a request's time below which an operator is not listed


def profiles() -> str:
    """Return a table for each bundle that was profiled; where none was, say so."""
    results = [result for name in NAMES if (result := find_result(name)) is not None]
    if not results:
        return "No profile was made on an idle machine yet."
    return "\n\n".join([limits(results), several(results[-1]), *(profile(result) for result in results)])


def limits(results: list[Any]) -> str:
    """Return what limits the first two phases, a prefill of text and one with an image, in all bundles."""
    phases = [next(iter(result["phases"].values())) for result in results]
    experts = [phase["operators"][phase["experts"]["operator"]]["share"] for phase in phases]
    rates = [phase["experts"]["share"] for phase in phases]
    integers = [
        phase["experts"]["rate"] / result["ceilings"][INTEGERS]
        for phase, result in zip(phases, results, strict=True)
        if phase["experts"]["operator"] == "QMoE"
    ]
    mixed = [list(result["phases"].values())[1]["operators"] for result in results]
    linear, attention, beside = ([total(by, names, "share") for by in mixed] for names in (LINEAR, ATTENTION, EXPERTS))
    return f"""\
In a prefill of text the experts' operator takes {span(experts)} of the time, at {span(rates)} of the rate of one large product of its
kind, and in int8 and int4 at {span(integers)} of PyTorch's product of integers: this is what limits it. With an image linear layers take {span(linear)}, attention {span(attention)} and experts
{span(beside)}."""


def total(operators: dict[str, Any], names: tuple[str, ...], figure: str) -> float:
    """Return what these operators take together, "share" of a request's time or "seconds"."""
    return sum(float(row[figure]) for name, row in operators.items() if name in names)


def span(shares: list[float]) -> str:
    """Return the least and the most of shares."""
    least, most = (percent(figure, 0) for figure in (min(shares), max(shares)))
    return least if least == most else f"{least} to {most}"


def several(result: Any) -> str:
    """Return how the experts' operator's time grows with sequences that are decoded together, and what reading does."""
    counts = (1, 4, 16)
    phases = [result["phases"][f"decode, {n} together"]["operators"] for n in counts]
    first, *others = [total(operators, EXPERTS, "seconds") for operators in phases]
    experts, chosen = result["bundle"]["num_experts"], result["bundle"]["experts_per_token"]
    hit = [experts * (1 - (1 - chosen / experts) ** n) / chosen for n in counts[1:]]
    grown = " and ".join(f"{seconds / first:.1f}" for seconds in others)
    expected = " and ".join(f"{times:.1f}" for times in hit)
    return f"""\
In {result["bundle"]["precision"]} the experts' operator takes {grown} times as long for 4 and 16 sequences that are decoded together as for one;
{expected} times as many experts are met, each of which has to be read once."""


def profile(result: Any) -> str:
    """Return the sentence about one bundle and its table: shares of a request's time by operator, one column a phase."""
    phases = result["phases"]
    shares = {name: {op: row["share"] for op, row in phase["operators"].items()} for name, phase in phases.items()}
    for name, phase in phases.items():
        if not slowed(phase):
            shares[name]["between operators"] = phase["outside_operators"] / phase["seconds"]
    listed = [op for op in dict.fromkeys(op for by in shares.values() for op in by) if most(op, shares) >= LEAST]
    listed.sort(key=lambda op: -most(op, shares))
    rows = [[op, *(percent(by[op], 0) if op in by else "" for by in shares.values())] for op in listed]
    launches = [
        f"{sum(graph['launches_per_run'] for graph in phase['graphs'].values()):.0f}" for phase in phases.values()
    ]
    rows.append(["launches of one run of each graph", *launches])
    times = [f"{phase['seconds']:.2f}; {phase['seconds_without_profiling']:.2f}" for phase in phases.values()]
    rows.append(["seconds with profiling; without", *times])
    rows.append(
        [
            "the experts' operator, beside one large product or a streaming read",
            *("" if slowed(phase) else reached(phase["experts"]) for phase in phases.values()),
        ]
    )
    ceilings = "; ".join(
        f"{name.rsplit(' ', 1)[0]} {value:.0f} {name.rsplit(' ', 1)[1]}" for name, value in result["ceilings"].items()
    )
    return f"""\
{result["bundle"]["precision"]}, {machine_text(result["machine"])}, ONNX Runtime {result["onnxruntime"]}, {result["date"]}. Large products, and a streaming read: {ceilings}.

{table(["share of the time", *phases], rows)}"""


def prototype() -> str:
    """Return the table of benchmarks/grouped_experts.py."""
    result = read_result("grouped-experts")
    rows = []
    for case in result["results"]:
        rates = {way: case["operations"] / seconds / 1e9 for way, seconds in case["seconds"].items()}
        own = rates["operator"]
        others = [f"{rates[way]:.0f} ({rates[way] / own:.2f} ×)" if way in rates else "" for way in PROTOTYPES]
        rows.append([case["shape"], case["precision"], f"{own:.0f}", *others])
    return f"""\
{machine_text(result["machine"])}, ONNX Runtime {result["onnxruntime"]}, {result["date"]}:

{table(["G operations/s", "weights", "ONNX Runtime's operator", *PROTOTYPES.values()], rows)}"""


def integer_products() -> str:
    """Return the table of benchmarks/integer_products.py."""
    result = read_result("integer-products")
    rows = []
    for case in result["results"]:
        rates = {way: case["operations"] / seconds / 1e9 for way, seconds in case["seconds"].items()}
        exact, group, row = (f"{rate:.0f}" for rate in rates.values())
        errors = [f"{percent(off, 0 if off > 0.1 else 1)}" for way in WAYS for off in case["errors"][way]]
        gain = rates[WAYS[1]] / rates[WAYS[0]]
        rows.append(
            [case["layer"], exact, group, f"{row} ({gain:.2f} ×)", " / ".join(errors[:2]), " / ".join(errors[2:])]
        )
    headers = ["G operations/s", "float32", *WAYS, "error by group", "error by row"]
    return f"""\
{machine_text(result["machine"])}, ONNX Runtime {result["onnxruntime"]}, {result["date"]}. Errors are root mean squares beside the product's, on
even activations / on ones with four channels 64 times as large:

{table(headers, rows)}"""


def error_of_rows() -> float:
    """Return by how many times, at most, a scale for each row makes the error of layers with large channels larger."""
    errors = (case["errors"] for case in read_result("integer-products")["results"])
    return max(float(by[WAYS[1]][1] / by[WAYS[0]][1]) for by in errors)


def slowed(phase: Any) -> bool:
    """Return whether profiling itself took so much of a request's time that rates would be wrong by it."""
    return bool(phase["seconds"] > SLOWED * phase["seconds_without_profiling"])


def most(operator: str, shares: dict[str, dict[str, float]]) -> float:
    """Return the largest share that an operator has in a phase."""
    return max(by.get(operator, 0.0) for by in shares.values())


def reached(experts: Any) -> str:
    """Return the rate of the experts' operator, and its share of what a single large operator reaches."""
    return f"{experts['rate']:.0f} {experts['unit']} ({percent(experts['share'], 0)})" if experts else ""
