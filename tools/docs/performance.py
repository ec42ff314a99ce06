"""The results pages of speed and memory, from benchmarks/results."""

from statistics import median
from typing import Any

from tools.docs.comparison import TOGETHER, absent, comparison, leads, starts, together
from tools.docs.profile import error_of_rows, integer_products, profiles, prototype
from tools.docs.tables import find_result, machine_text, percent, read_result, table


def performance_page() -> str:
    """Return the page about speed on a CPU."""
    result = read_result("cpu-m600")
    amx = read_result("cpu-m600-amx")
    return f"""\
# Speed on a CPU

One command runs every contestant in its own process, in turns, and takes the median of {result["rounds"]} rounds, with the
slowest and the fastest beside it. The checkpoint has 650 M random parameters in the released model's proportions
(`benchmarks/make_checkpoint.py`). {machine_text(result["machine"])}, {result["date"]}.

In a decode all contestants go on with the same random tokens (`benchmarks/continuations.py`): answers of random weights repeat
themselves, each contestant's in its own way, and with them the experts that a step reads.
{result.get("note", "")}

llama.cpp knows ERNIE 4.5's text sibling: it runs the decoder with its text experts, and no images. `make_gguf.py` builds it
for the machine from the sdist of llama-cpp-python and writes the checkpoint's text part in GGUF; llama.cpp quantizes it. It
takes part with weights repacked at load, which is its default, and as they are in the mapped file. Its Q4_K_S is in part of
other types: the experts' width, 352, is no multiple of 256. At its start it loads text alone, where ours loads the vision parts,
too.

<!-- not run: builds llama.cpp, and takes an hour and an idle machine -->
```bash
python benchmarks/make_checkpoint.py scratch/m600
for precision in fp32 int8 int4; do ernie-export scratch/m600 --precision $precision -o scratch/m600-$precision; done
python benchmarks/make_gguf.py scratch/m600 scratch/m600-gguf --packages scratch/llama
python benchmarks/compare.py scratch/m600 scratch/m600-fp32 scratch/m600-int8 scratch/m600-int4 scratch/m600-gguf/*.gguf \\
    --packages scratch/llama --apart --rounds {result["rounds"]} --only ernie-export --only llama.cpp --only "PyTorch eager" \\
    --only "PyTorch grouped_mm" --output benchmarks/results/cpu-m600.json
```

{comparison(result)}
{absent(result)}
![Bar chart of the table's three workloads](../images/performance.svg)

Sequences of 64 tokens and more, decoded together:

{together(result)}

The fastest export beside the fastest peer, by medians: neither quantized (PyTorch also in bf16), in 8 bits, in 4 bits, and in any
precision. Rounds overlap where some round of the one was as fast as some round of the other:

{leads(result)}

{starts(result)}

{huge_pages()}{released_widths()}## Where the time goes

`python benchmarks/profile_operators.py scratch/m600-int4` profiles a bundle by operator. Shares are of a request's time with
profiling on; where that takes much longer than without, as with the many short launches of a decode, neither rates nor what
lies between operators are given.

{profiles()}

What an operator of our own could reach, prototypes show, of ONNX Runtime's standard operators
(`python benchmarks/grouped_experts.py`): each expert's tokens multiplied by its weights with both threads, in place of experts
dealt to threads; and the same in integers (MatMulInteger, which has kernels for VNNI and AMX), activations rounded to 8 bits
for each token. The routing is computed beforehand, in the operator's time it is included.

{prototype()}

They are not exported: decode reads the operator's own copy of the weights, and ONNX Runtime would pack another one
for these products. What it takes is an operator of ONNX Runtime's for experts that multiplies integers as MatMulInteger does.

Linear layers, too, could multiply integers with one scale for each row of the weights and of the activations
(`python benchmarks/integer_products.py`, the rounding included):

{integer_products()}

They are exported with a scale for each group, which is slower and keeps more: where a few channels are much larger than the
others, as in large transformers, a scale for each row costs up to {error_of_rows():.1f} times the error. What it would cost the released model
nobody could measure here without its weights.

With fewer tokens ONNX Runtime's operator deals experts to threads by number, so that six experts of one token fall unevenly
on two threads in fp32 (`python benchmarks/expert_balance.py` shows it).

Nothing is chosen by the processor when a bundle is loaded: its precision is chosen at export. `session.force_spinning_stop`,
which lets a graph's threads sleep between its runs, was tried by hand in each precision, and no rate changed beyond what rounds
differ by.

## On another processor, and beside other exporters

Compare rows within one table, not across tables. With AMX, which PyTorch multiplies bfloat16 with and ONNX Runtime nothing that is
quantized ({machine_text(amx["machine"])}, {older("cpu-m600-amx")}):

{comparison(amx)}
{absent(amx)}
{leads(amx)}

The results of the next three do not name the machine. A Xeon with AVX-512 and no AMX, two cores ({older("cpu-m600-avx512")}):

{comparison(read_result("cpu-m600-avx512"))}

OpenVINO runs our `onnx-portable` graphs ({older("cpu-m600-peers")}):

{comparison(read_result("cpu-m600-peers"))}

`torch.compile`, and the exporters of transformers, which take text alone ({older("cpu-m600-exporters")}):

{comparison(read_result("cpu-m600-exporters"))}

## A second question about the same image

The KV cache and the image's features are kept, so a second question prefills only what is new. Time to first token, median;
the share is of the first question's time:

{second_questions()}

<!-- not run: needs the checkpoint of the first command -->
```bash
python benchmarks/second_question.py scratch/m600-int4
```

## Serving

{serving()}

## Unequal images

{vision_calls()}
"""


def huge_pages() -> str:
    """Return the section about huge pages, empty where that run was not made."""
    result = find_result("cpu-m600-huge-pages")
    if result is None:
        return ""
    return f"""\
## With huge pages

Weights that ONNX Runtime packs, and those that llama.cpp repacks, lie in pages of 4 KiB where the system gives larger ones
only to programs that ask (`madvise` in `/sys/kernel/mm/transparent_hugepage/enabled`). glibc asks with
`GLIBC_TUNABLES=glibc.malloc.hugetlb=1` in the environment of `ernie-serve`. Each contestant without and with it, in one run;
"decode" goes on from 512 tokens, the others from 64. {machine_text(result["machine"])}, {result["rounds"]} rounds, {result["date"]}.

<!-- not run: takes minutes and an idle machine, after the first command -->
```bash
python benchmarks/compare.py scratch/m600 scratch/m600-int4 scratch/m600-gguf/Q4_0.gguf --packages scratch/llama --apart \\
    --rounds 2 --task decode --huge-pages --only "ernie-export int4" --only "llama.cpp Q4_0" \\
    --output benchmarks/results/cpu-m600-huge-pages.json
```

{comparison(result, ("decode", *TOGETHER))}

No command of this project asks for them.

"""


def released_widths() -> str:
    """Return the section about the released widths, empty where that run was not made."""
    result = find_result("cpu-released-7")
    if result is None:
        return ""
    return f"""\
## At the released widths

Seven of the released model's 28 layers, with all of its experts and its vocabulary, in one run of the same command on
checkpoints of `make_checkpoint.py --shape full --layers 7`. {machine_text(result["machine"])}, {result["rounds"]} rounds, {result["date"]}.
{result["note"]}

{comparison(result)}
{absent(result)}
{leads(result)}

{starts(result)}

"""


def older(name: str) -> str:
    """Return the rounds and the date of an older run."""
    result = read_result(name)
    return f"{result['rounds']} round{'s' * (result['rounds'] > 1)}, {result['date']}"


def second_questions() -> str:
    """Return the table of benchmarks/second_question.py's three results."""
    names = {
        "second-question-full-int4": "released size, int4",
        "second-question-m600": "650 M, fp32",
        "second-question-m600-int4": "650 M, int4",
    }
    rows = []
    for name, label in names.items():
        medians = read_result(name)["median"]
        later = [medians[f"second, {where} conversation"] for where in ("new", "same")]
        first = medians["first question"]["ttft"]
        cells = [f"{entry['ttft']:.2f} s ({percent(entry['ttft'] / first, 0)})" for entry in later]
        rows.append([label, f"{first:.2f} s", *cells])
    return table(["bundle", "first question", "second, new conversation", "second, same conversation"], rows)


def serving() -> str:
    """Return the paragraph and table of benchmarks/serve_load.py."""
    result = read_result("serve-mini")
    kinds = list(result["runs"][0]["milliseconds"])
    rows = [
        [
            run["users"],
            f"{run['requests_per_second']:.1f}",
            f"{run['failures']} of {run['requests']}",
            *(f"{run['milliseconds'][kind]['median']} / {run['milliseconds'][kind]['p95']}" for kind in kinds),
        ]
        for run in result["runs"]
    ]
    headers = ["users", "requests per second", "failures", *(f"{kind}, ms median / p95" for kind in kinds)]
    return f"""\
`{result["command"]}` (locust {result["locust"]}) on {result["date"]}, on two busy cores with one thread for the model.
Every answer was checked, and none was wrong.

{table(headers, rows)}"""


def vision_calls() -> str:
    """Return the paragraph and table of benchmarks/vision_calls.py."""
    result = read_result("vision-calls")
    ways = ("call for each", "one ragged call")
    rows = [
        [case["images"], *(cell for way in ways for cell in (f"{case[way]['seconds']:.3f} s", case[way]["mib"]))]
        for case in result["cases"]
    ]
    headers = ["images (patches)", "a call for each", "MiB on top", "one ragged call with a mask", "MiB on top"]
    return f"""\
`{result["command"]}` shows why images of different sizes go through the vision encoder in one call for each size. It
measures {result["note"]}.

{table(headers, rows)}"""


def full_size_page() -> str:
    """Return the page about the released size on a small machine."""
    result = read_result("full-size-cpu")
    speed_result = read_result("export-full-int4")
    small = read_result("export-speed-m600")
    cold = result["answers"]["cold"]
    warm = result["answers"]["warm"]
    off = abs(result["bundle_bytes"] / result["planned_bundle_bytes"] - 1)
    rows = [
        ["seconds from the command to the first text", *(f"{a['seconds_to_first_text']:.1f}" for a in (cold, warm))],
        ["decode, tokens per second", *(f"{a['tokens_per_second']:.2f}" for a in (cold, warm))],
        ["share of what the memory's bandwidth allows", *(percent(a["share_of_bandwidth"], 0) for a in (cold, warm))],
        ["GiB resident, mapped files included", *(f"{a['proportional_bytes'] / 2**30:.2f}" for a in (cold, warm))],
    ]
    runs = speed_result["runs"]
    return f"""\
# The released size on a small machine

A checkpoint of the full released shape ({result["layers"]} layers, 29.4 B random parameters,
{speed_result["checkpoint_bytes"] / 2**30:.1f} GiB) was exported in {result["precision"]} and asked about a 512-pixel image with
`ernie-run`. The machine has 24 GiB of memory and no GPU: {machine_text(result["machine"])}, {result["date"]}.

<!-- not run: takes an hour, 75 GiB of disk and 15 GiB of memory -->
```bash
python benchmarks/full_size.py scratch/full
```

{table(["", "from disk", "started again"], rows)}

The bandwidth is {result["bandwidth_bytes_per_second"] / 1e9:.1f} GB/s over {result["bytes_per_token"] / 1e9:.2f} GB that one token
reads. The bundle is {result["bundle_bytes"] / 2**30:.2f} GiB;
`ernie-plan` had predicted it to {100 * off:.5f} %. ONNX Runtime packs the mapped weights into memory of its own while it
loads, which takes most of the time to the first text ([what a start takes](start.md)); the weights are in memory once. The packed
weights and the mapped file together are more than the machine's memory, so a second start finds little of the bundle in the page cache.

## Export

| | seconds | written | memory held |
| --- | --- | --- | --- |
{export_rows(runs)}

`python benchmarks/export_speed.py scratch/full/checkpoint --precision int4 --rounds 1` measured the table on
{speed_result["date"]}. The difference to `cp` is quantization: 115 M values a second on two cores.

![Memory of ernie-export and cp over time: the export stays below 180 MiB and leaves the page cache alone](../images/export-memory.png)

In fp32 an export is a copy. `python benchmarks/export_speed.py scratch/m600 --rounds 3`,
{small["checkpoint_bytes"] / 2**30:.2f} GiB, synced to disk, median of {len(small["runs"]["cp"]["seconds"])} rounds on a busy
disk:

| | seconds | written | memory held |
| --- | --- | --- | --- |
{export_rows(small["runs"])}
"""


def export_rows(runs: Any) -> str:
    """Return the rows of an export_speed.py result."""
    lines = []
    for name, run in runs.items():
        written = f"{run['written_bytes'] / 2**30:.2f} GiB"
        held = run["peak_anonymous_bytes"] / 2**20
        memory = f"{held:.1f} MiB" if held < 1 else f"{held:.0f} MiB"
        lines.append(f"| {name} | {median(run['seconds']):.1f} | {written} | {memory} |")
    return "\n".join(lines)
