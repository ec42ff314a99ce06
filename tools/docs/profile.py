"""Where a CPU's time goes, from the results of benchmarks/profile_operators.py."""

from typing import Any

from tools.docs.tables import find_result, percent, table

NAMES = ("profile-m600-fp32", "profile-m600-int8", "profile-m600-int4")
LEAST = 0.02  # share of a request's time below which an operator is not listed


def profiles() -> str:
    """Return a table for each bundle that was profiled; where none was, say so."""
    results = [result for name in NAMES if (result := find_result(name)) is not None]
    if not results:
        return "No profile was made on an idle machine yet."
    return "\n\n".join([limits(results), *(profile(result) for result in results)])


def limits(results: list[Any]) -> str:
    """Return what the experts' operator takes of a prefill of text, the first phase, in all bundles."""
    phases = [next(iter(result["phases"].values())) for result in results]
    shares = [phase["operators"][phase["experts"]["operator"]]["share"] for phase in phases]
    rates = [phase["experts"]["share"] for phase in phases]
    return f"""\
In a prefill of text the experts' operator takes {percent(min(shares), 0)} to {percent(max(shares), 0)} of the time, at {percent(min(rates), 0)} to {percent(max(rates), 0)} of the
rate of one large product: this is what limits it."""


def profile(result: Any) -> str:
    """Return the sentence about one bundle and its table: shares of a request's time by operator, one column a phase."""
    phases = result["phases"]
    machine = result["machine"]
    shares = {name: {op: row["share"] for op, row in phase["operators"].items()} for name, phase in phases.items()}
    for name, phase in phases.items():
        shares[name]["between operators"] = phase["outside_operators"] / phase["seconds"]
    listed = [op for op in dict.fromkeys(op for by in shares.values() for op in by) if most(op, shares) >= LEAST]
    listed.sort(key=lambda op: -most(op, shares))
    rows = [[op, *(percent(by[op], 0) if op in by else "" for by in shares.values())] for op in listed]
    launches = [
        f"{sum(graph['launches_per_run'] for graph in phase['graphs'].values()):.0f}" for phase in phases.values()
    ]
    rows.append(["launches of one run of each graph", *launches])
    rows.append(
        ["the experts' operator, beside the CPU's best", *(reached(phase["experts"]) for phase in phases.values())]
    )
    ceilings = "; ".join(
        f"{name.rsplit(' ', 1)[0]} {value:.0f} {name.rsplit(' ', 1)[1]}" for name, value in result["ceilings"].items()
    )
    return f"""\
{result["bundle"]["precision"]}, {machine["cpu"]} ({", ".join(machine["features"])}), {machine["cores"]} cores, load {machine["load"]:.1f} before, ONNX Runtime
{result["onnxruntime"]}, {result["date"]}. Best of single operators: {ceilings}.

{table(["share of the time", *phases], rows)}"""


def most(operator: str, shares: dict[str, dict[str, float]]) -> float:
    """Return the largest share that an operator has in a phase."""
    return max(by.get(operator, 0.0) for by in shares.values())


def reached(experts: Any) -> str:
    """Return the rate of the experts' operator, and its share of what a single large operator reaches."""
    return f"{experts['rate']:.0f} {experts['unit']} ({percent(experts['share'], 0)})" if experts else ""
