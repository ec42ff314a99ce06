"""The README's table of results."""

from typing import Any

from tools.docs.comparison import WIDTHS, lead
from tools.docs.tables import percent, read_result, table

START = "<!-- results -->\n"
END = "<!-- /results -->"


def results() -> str:
    """Return seven rows, each with the page that has the rest."""
    cpu = read_result("cpu-m600")
    full = read_result("full-size-cpu")
    cold = full["answers"]["cold"]
    exported = read_result("export-full-int4")
    export = exported["runs"]
    precision = {entry["precision"]: entry for entry in read_result("precision-mini")["precisions"]}
    faults = read_result("faults")
    memory = cpu["rss_mib"]
    best = cpu["machine"]["features"][-1]
    llama = min(mib for name, mib in memory.items() if name.startswith("llama.cpp Q4"))
    rows = [
        [
            f"fastest export beside the fastest peer, 650 M, two cores with {best}: decode after 512; 64 tokens",
            beside(cpu, "decode", "decode, 1 together"),
        ],
        ["decode of 4; of 16 sequences", beside(cpu, "decode, 4 together", "decode, 16 together")],
        ["prefill of text; with an image", beside(cpu, "prefill 512 text", "prefill 256 text + 1024 image")],
        [
            "peak memory: int4; llama.cpp (text alone); PyTorch",
            f"{memory['ernie-export int4']:,.0f}; {llama:,.0f}; {memory['PyTorch grouped_mm bf16']:,.0f} MiB",
        ],
        [
            f"released size (29.4 B) in int4 ({full['date']})",
            f"first text after {cold['seconds_to_first_text']:.0f} s from disk, then {cold['tokens_per_second']:.1f} tokens/s",
        ],
        [
            f"its export ({exported['date']})",
            f"{export['ernie-export int4']['seconds'][0]:.0f} s holding "
            f"{export['ernie-export int4']['peak_anonymous_bytes'] / 2**20:.0f} MiB; `cp` takes "
            f"{export['cp']['seconds'][0]:.0f} s",
        ],
        [
            "answers right: fp32; int4; int4 calibrated",
            "; ".join(percent(precision[name]["accuracy"]) for name in ("fp32", "int4", "int4/3@100")),
        ],
    ]
    links = (
        "[Speed](docs/results/performance.md), [full size](docs/results/full-size.md), "
        "[accuracy](docs/results/accuracy.md) and "
        f"[faults](docs/results/faults.md) ({faults['damaged_files']:,} damaged files) have the rest."
    )
    measured = f"measured {cpu['date']} (≈: rounds overlap)"
    return f"{table(['what', measured], rows)}\n\n{links}\n"


def beside(cpu: Any, *workloads: str) -> str:
    """Return the fastest export's rate as a multiple of the fastest peer's, both of any precision, in each workload."""
    found = [lead(cpu, workload, WIDTHS["any precision"]) for workload in workloads]
    return "; ".join(
        f"{'' if one.clear else '≈ '}{one.ratio:.2f} × ({one.peer.split()[0]})" for one in found if one is not None
    )


def with_results(readme: str) -> str:
    """Return the README with its table of results brought up to date."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return before + START + results() + END + after
