"""The results pages of accuracy and faults, from benchmarks/results and the small checkpoint's own record."""

import re
from typing import Any

from tools.docs.tables import ROOT, percent, read_result, scientific, table

NAMES = {"int4/3@100": "int4 calibrated, seed 100", "int4/3@101": "seed 101", "int4/3@102": "seed 102"}


def on_tiles(result: Any) -> str:
    """Return a sentence about int4 bundles on images that are unlike those of the calibration."""
    kl = [f"{entry['tiles_kl']:.2f}" for entry in result["precisions"] if entry["precision"].startswith("int4")]
    return f"on images of random tiles the divergence is {kl[0]} nats in int4, and {', '.join(kl[1:])} calibrated."


def accuracy_page() -> str:
    """Return the page about what a precision costs, and what the small checkpoint can do."""
    plain = read_result("precision-mini")
    outliers = read_result("precision-mini-outliers")
    asked = sum(plain["precisions"][0]["asked"].values())
    harder = sum(outliers["precisions"][0]["asked"].values())
    return f"""\
# Accuracy

## What a lower precision costs

{asked:,} held-out questions to the small trained checkpoint. KL is the divergence from fp32 along the right answers (± standard
error). A question counts as right if every token of its answer is the bundle's first choice (95 % interval). Routing is
compared with PyTorch computing with the bundle's own weights, on the conversations of `ernie-verify`. Calibration ran three times, on 126 conversations of other seeds each.

<!-- not run: takes a quarter of an hour -->
```bash
{wrap(plain["command"])}
```

{precisions(plain, first_digits=2)}

![KL divergence of each precision on a logarithmic scale](../images/precision.svg)

A harder case: the same function with activations 64 times larger in 3 % of the channels, as large language models have them
({harder} questions; the intervals of int4 and calibrated int4 overlap):

<!-- not run: takes a quarter of an hour -->
```bash
{wrap(outliers["command"])}
```

{precisions(outliers, first_digits=2)}

Calibrate on what you will ask, and compare: {on_tiles(plain)}
Calibration was not yet run at full size, where it would take about 1.5 hours of one core.

## The small checkpoint

{small_checkpoint()}
"""


def wrap(command: str) -> str:
    """Return a long command on lines that end in a backslash."""
    return re.sub(r" (--(?!only))", r" \\\n    \1", command, count=1)


def precisions(result: Any, first_digits: int) -> str:
    """Return the table of a precision.py result."""
    rows = []
    for entry in result["precisions"]:
        kl = scientific(entry["kl"])
        low, high = entry["interval"]
        rows.append(
            [
                NAMES.get(entry["precision"], entry["precision"]),
                f"{entry['mib']:.1f}",
                f"{kl} ± {scientific(entry['kl_error'])}" if entry["kl"] else kl,
                percent(entry["first_choice_agreed"], first_digits),
                percent(entry["routing_agreed"]),
                f"{percent(entry['accuracy'])} ({100 * low:.1f}..{100 * high:.1f})",
            ]
        )
    return table(["precision", "MiB", "KL, nats", "first choice agrees", "routing agrees", "right"], rows)


def small_checkpoint() -> str:
    """Return the record of the small checkpoint, its headings one level down."""
    text = (ROOT / "examples" / "mini-ernie" / "ACCURACY.md").read_text()
    body = text.split("\n", 1)[1].strip()
    body = re.sub(r"(?m)^    (python .*)$", r"`\1`", body)
    return re.sub(r"(?m)^#", "##", body)


def faults_page() -> str:
    """Return the page about damaged files, bad requests, kills and the soak."""
    faults = read_result("faults")
    soak = read_result("soak")
    run = faults["server_run"]
    engines = faults["engine_kinds"]
    kills = faults["kills"]
    ends = ("old bundle whole", "new bundle whole", "no bundle, as before")
    count = {end: sum(entry[end] for entry in kills.values()) for end in ends}
    killed = sum(entry["kills"] for entry in kills.values())
    operations = sum(soak["ended"].values())
    refused = sum("Error code: 4" in line for line in soak["wrong"])
    memory = soak["anonymous"]
    minutes = re.search(r"--minutes (\d+)", soak["command"])
    assert minutes is not None
    floods = [entry["ended"] for name, entry in faults["server"].items() if name.startswith("flood")]
    return f"""\
# Faults

Damaged files and kills: measured on {faults["date"]}. Bad requests and clients: on {run["date"]}, at commit {run["commit"]}, on
{run["machine"]}. `make test` runs a part of each.

| what | command | result |
| --- | --- | --- |
| damaged files | `python tools/fuzz/run.py --inputs N --out F.json` | {faults["damaged_files"]:,} files of {len(faults["kinds"])} kinds: no crash, hang (20 s of processor time) or memory past 6 GiB is left |
| bad requests and clients | `python tools/fuzz/attack.py bundles/mini-ernie --inputs N` | {faults["bad_requests_and_clients"]:,} requests and clients: no 5xx, no sequence slot lost; in each of {len(floods)} floods {floods[0]["200"]} were answered right and {floods[0]["429"]} got 429 |
| exports killed | `pytest tests/exporter/test_bundle.py -k killed --kills 50` | `kill -9` at {killed} moments, {" and ".join(kills)}: {count[ends[0]]} times the old bundle was whole, {count[ends[1]]} times the new one, {count[ends[2]]} times there was nothing where nothing had been; no other outcome |
| a soak | `python benchmarks/soak.py bundles/mini-ernie --minutes {minutes[1]}` | {operations:,} operations of {len(soak["ended"])} kinds, {refused} refused that should not be (see below), {len(soak["wrong"]) - refused} wrong answers, anonymous memory {memory["growth_percent"]:+g} % after the warm-up ({memory["after_warm_up_mib"]} to {memory["at_the_end_mib"]} MiB) |

A damaged file keeps a valid structure: sizes and checksums are made right again, so that the damage reaches the code that
reads it for a user. `python tools/fuzz/run.py --kind MP4 --first 1234 --inputs 1` repeats one input.

## Damaged files by kind

{kinds(faults)}

## Bad requests and clients

{server(faults)}

## Found and fixed

{len(faults["found_and_fixed"])} defects, by these and by attacks by hand:

{chr(10).join(f"- {line}" for line in faults["found_and_fixed"])}

## Not proven

- {faults["note"]}
- The soak ran the server at commit {soak["commit"]} on {soak["machine"]}. {soak["note"]}
- Bundles of TensorRT engines are among the kinds ({engines["date"]}, at commit {engines["commit"]}, {engines["machine"]}) as far
  as goes without a GPU: manifests, and what an interrupted build leaves. Engines themselves and `--device cuda` are not.
"""


def kinds(faults: Any) -> str:
    """Return the table of damaged files."""
    rows = [
        [name, f"{kind['inputs']:,}", f"{kind['answered']:,}", f"{kind['refused']:,}"]
        for name, kind in faults["kinds"].items()
    ]
    return table(["kind", "inputs", "read", "refused"], rows)


def server(faults: Any) -> str:
    """Return the table of bad requests and how they ended."""
    rows = [
        [name, ", ".join(f"{count:,} × {end}" for end, count in entry["ended"].items()), f"{entry['resident_mib']:.0f}"]
        for name, entry in faults["server"].items()
    ]
    return table(["what", "ended", "resident, MiB"], rows)
