"""The results page of what a start on a CPU takes."""

from statistics import median
from typing import Any

from tools.docs.tables import find_result, machine_text, percent, read_result, table

BUNDLES = {"m600-int4": "650 M", "released-7-int4": "released widths, 7 of 28 layers"}
GRAPHS = {"decoder": "prefill and images", "decode": "text alone"}


def start_page() -> str:
    """Return the page about starts on a CPU."""
    full = read_result("full-size-cpu")
    cold = full["answers"]["cold"]["seconds_to_first_text"]
    prefill = read_result("second-question-full-int4")["median"]["first question"]["ttft"]
    least = percent(unpacked_share(read_result("packing-m600-int4")), 0)
    return f"""\
# Start on a CPU

There is no cache of packed weights: it would save little. ONNX Runtime's kernels for quantized weights read a layout
that depends on the processor's instructions, so a load copies the mapped weights into memory of its own: that is nearly all
that a start takes. Medians of loads in int4, each in a process of its own, with the bundle in the page cache
(`python benchmarks/packing.py scratch/m600-int4`):

{packing()}

Each packed page is new memory, which the system clears. ONNX Runtime can save packed weights
(`session.save_external_prepacked_constant_initializers`), and maps them at the next load; but that load packs all the same,
looks the saved copy up by a checksum of what it packed, compares both and drops its own
(`PrepackConstantInitializedTensors` in session_state.cc). That saves memory, and of the time of a load what the rows of saved
weights show, the graph's optimization among it; without packing, {least} of the 650 M one's would be left. What it would take is a
change upstream that trusts a saved copy by the initializer's name and the kernel's settings, or kernels that read the
bundle's layout. MatMulNBits and QMoE pack; MoE in float32 does not, and reads the mapped file.

So an engine packs with all threads, and until the first image or video comes it may leave out what text does not read: the
vision experts, the vision encoder and the resampler. `ernie-run` does both. From the command to the first token, before
that change (commit 0426967) and now, in turns (`benchmarks/start_up.py`):

{start_up()}

The released size in int4, with a picture of 512 pixels, takes {cold:.0f} s from the command to the first text, from disk
([full size](full-size.md)). 28 layers are four times the table's 7, and the prefill is {prefill:.0f} s of it
([measured](performance.md#a-second-question-about-the-same-image)): nothing that a start could save would bring that below
{prefill:.0f} s on two cores. Decode with weights that are not packed is no way out: `session.disable_prepacking` makes a decode step of
the 650 M checkpoint many times as slow. A server that restarts often is better kept alive: `ernie-serve` packs once.
"""


def unpacked_share(result: Any) -> float:
    """Return the share of a load of the text's graph that is left without packing."""
    loads = result["loads"]["decode"]
    unpacked, packed = (median(run["seconds"] for run in loads[way]) for way in ("no packing", "all threads"))
    return unpacked / packed


def packing() -> str:
    """Return the table of benchmarks/packing.py for each bundle that it was run on."""
    rows = []
    about = []
    for name, label in BUNDLES.items():
        result = find_result(f"packing-{name}")
        if result is None:
            continue
        about.append(
            f"{label}: {machine_text(result['machine'])}, ONNX Runtime {result['onnxruntime']}, {result['date']}."
        )
        for graph, by_way in result["loads"].items():
            for way, loads in by_way.items():
                rows.append([f"{label}, {GRAPHS[graph]}", way, *medians(loads, ("seconds", "processor_seconds"))])
    return table(["graph", "packed by", "seconds", "processor seconds"], rows) + "\n\n" + "\n".join(about)


def medians(runs: list[dict[str, float]], keys: tuple[str, ...]) -> list[str]:
    """Return the median of each figure."""
    return [f"{median(run[key] for run in runs):.2f}" for key in keys]


def start_up() -> str:
    """Return the table of benchmarks/start_up.py on the 650 M checkpoint."""
    result: Any = read_result("start-up-m600-int4")
    rows = []
    for question, by_code in result["medians"].items():
        for name, found in by_code.items():
            sizes = (f"{found[key] / 2**20:,.0f}" for key in ("anonymous_bytes", "resident_bytes"))
            rows.append([f"{question}, {name}", f"{found['seconds']:.2f}", f"{found['processor_seconds']:.2f}", *sizes])
    headers = ["650 M in int4", "seconds", "processor seconds", "MiB held alone", "MiB with mapped files"]
    return f"""\
{table(headers, rows)}

{machine_text(result["machine"])}, {result["rounds"]} rounds, {result["date"]}."""
