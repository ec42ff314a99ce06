"""AIPerf: load by each interface that it shares with us, with images, and usage in every chunk."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.clients.probe import BUNDLE, MINI, MODEL, WORK, check, equal, true

COUNT = 6
os.environ.pop("HF_HUB_OFFLINE", None)  # with it, a folder is no name of a tokenizer
# Its dozen processes import for longer than the 30 seconds that they have, where there are few cores.
os.environ |= {"AIPERF_SERVICE_REGISTRATION_TIMEOUT": "200", "AIPERF_SERVICE_REGISTRATION_MAX_ATTEMPTS": "200"}


def load(name: str, *options: str) -> float:
    """Run a benchmark of COUNT requests and return the tokens of an answer; raise AssertionError if one failed."""
    folder = WORK / name
    command = [str(Path(sys.executable).with_name("aiperf")), "profile", "--model", MODEL, "--url", MINI]
    command += ["--tokenizer", str(BUNDLE), "--request-count", str(COUNT), "--concurrency", "2", "--ui", "none"]
    # Not ignore_eos: the small model then ends again and again, and an answer without text counts as failed.
    command += ["--isl", "48", "--osl", "16", "--extra-inputs", "min_tokens:16", "--artifact-dir", str(folder)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=280)
    print(done.stdout[-3000:], done.stderr[-3000:])
    (found,) = folder.rglob("profile_export_aiperf.json")
    report = json.loads(found.read_text())
    true(not report.get("error_summary"), report.get("error_summary"))
    equal(report["request_count"]["avg"], COUNT)
    return float(report["output_sequence_length"]["avg"])


with check("chat, streamed, usage in every chunk"):
    tokens = load("chat", "--endpoint-type", "chat", "--streaming", "--use-server-token-count", "--per-chunk-usage")
    equal(tokens, 16)
with check("images"):
    size = ("--image-width-mean", "64", "--image-height-mean", "64", "--image-batch-size", "1")
    equal(load("images", "--endpoint-type", "chat", "--streaming", "--use-server-token-count", *size), 16)
with check("completions"):
    equal(load("completions", "--endpoint-type", "completions", "--streaming", "--use-server-token-count"), 16)
with check("responses"):
    # It counts by itself: an answer cut at its length ends with response.incomplete, whose usage it does not read.
    true(load("responses", "--endpoint-type", "responses", "--streaming") > 0, "no tokens")
