"""The README's table of results."""

from tools.docs.performance import ratios
from tools.docs.tables import percent, read_result, table

START = "<!-- results -->\n"
END = "<!-- /results -->"


def results() -> str:
    """Return six rows, each with the page that has the rest."""
    cpu = read_result("cpu-m600")
    full = read_result("full-size-cpu")
    cold = full["answers"]["cold"]
    export = read_result("export-full-int4")["runs"]
    precision = {entry["precision"]: entry for entry in read_result("precision-mini")["precisions"]}
    faults = read_result("faults")
    times = {name.split()[1]: row for name, row in ratios(cpu).items()}
    decode = ", ".join(f"{name} {row['decode']:.2f} ×" for name, row in times.items())
    text, image = (times["fp32"][load] for load in ("prefill 512 text", "prefill 256 text + 1024 image"))
    memory = cpu["rss_mib"]
    rows = [
        ["decode beside PyTorch's best fp32, 650 M parameters, two cores", decode],
        ["prefill in fp32 beside the same, text alone; with an image", f"{text:.2f} ×; {image:.2f} ×"],
        [
            "peak memory: int4; PyTorch",
            f"{memory['ernie-export int4']:,.0f} MiB; {memory['PyTorch grouped_mm fp32']:,.0f} MiB",
        ],
        [
            "released size (29.4 B) in int4, two cores, 24 GiB",
            f"first text after {cold['seconds_to_first_text']:.0f} s from disk, then {cold['tokens_per_second']:.1f} tokens/s",
        ],
        [
            "its export",
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
        f"[faults](docs/results/faults.md) ({faults['damaged_files']:,} damaged files) have the commands and the rest."
    )
    measured = f"measured {cpu['date']}"
    return f"{table(['what', measured], rows)}\n\n{links}\n"


def with_results(readme: str) -> str:
    """Return the README with its table of results brought up to date."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return before + START + results() + END + after
