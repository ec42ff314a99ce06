"""Load on ernie-serve by locust, a public load generator: requests a second, latency, time to first token, refusals.

    python benchmarks/serve_load.py bundles/mini-ernie --locust path/to/locust

locust (`pip install locust`) belongs in an environment of its own. Each user asks one question after another, about
text and about a picture; an answer that is not the right one counts as a failure. Server and locust share the machine.
"""

import base64
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import click
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from ernie_export.runtime.bench.machine import Machine

ROOT = Path(__file__).parents[1]
SERVE = "from ernie_export.runtime.cli.serve import main; main()"
KINDS = ("no picture", "one picture", "clip, which way")
USER = """
import json
from locust import HttpUser, task

QUESTIONS = json.loads({questions!r})

class Asker(HttpUser):
    turn = 0

    @task
    def ask(self):
        question = QUESTIONS[self.turn % len(QUESTIONS)]
        self.turn += 1
        body = {{"messages": question["messages"], "max_tokens": 16}}
        with self.client.post("/v1/chat/completions", json=body, name=question["name"], catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"status {{answer.status_code}}")
            elif answer.json()["choices"][0]["message"]["content"] != question["answer"]:
                answer.failure("a wrong answer")
"""


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--locust", type=click.Path(path_type=Path, exists=True), required=True, help="The command locust.")
@click.option("--users", "steps", default="1,4,16", show_default=True, help="Users at a time, one run for each number.")
@click.option("--seconds", default=20, show_default=True, help="Length of a run.")
@click.option("--threads", default=1, show_default=True, help="Cores for the model.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures as JSON, too.")
def main(bundle: Path, locust: Path, steps: str, seconds: int, threads: int, output: Path | None) -> None:
    """Ask a server of BUNDLE by more and more users at a time."""
    machine = Machine.here()
    runs = []
    for users in map(int, steps.split(",")):
        with serving(bundle, threads) as url:
            runs.append({"users": users} | load(locust, url, users, seconds) | figures(url))
    report = {
        "date": date.today().isoformat(),
        "command": "python benchmarks/serve_load.py "
        + " ".join([str(bundle), "--users", steps, "--seconds", str(seconds)]),
        "locust": subprocess.run([locust, "--version"], capture_output=True, text=True).stdout.split()[1],
        "bundle": bundle.name,
        "threads": threads,
        "machine": asdict(machine) | {"busy": machine.busy},
        "runs": runs,
    }
    if output:
        output.write_text(json.dumps(report, indent=1) + "\n")
    show(runs)


@contextmanager
def serving(bundle: Path, threads: int) -> Iterator[str]:
    """A server in a process of its own; its address."""
    command = [sys.executable, "-c", SERVE, str(bundle), "--port", "0", "--threads", str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def load(locust: Path, url: str, users: int, seconds: int) -> dict[str, Any]:
    """What locust counted and timed, all kinds of question together and each."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "locustfile.py"
        file.write_text(USER.format(questions=json.dumps(questions())))
        command = [
            locust,
            "-f",
            file,
            "--headless",
            "-u",
            users,
            "-r",
            users,
            "-t",
            f"{seconds}s",
            "--host",
            url,
            "--json",
        ]
        done = subprocess.run([*map(str, command), "--only-summary"], capture_output=True, text=True)
    entries = json.loads(done.stdout)
    times = {entry["name"]: _spread(entry["response_times"]) for entry in entries}
    count = sum(entry["num_requests"] for entry in entries)
    return {
        "requests": count,
        "failures": sum(entry["num_failures"] for entry in entries),
        "requests_per_second": round(count / seconds, 2),
        "milliseconds": times,
    }


def questions() -> list[dict[str, Any]]:
    """Some of examples/questions.json, as OpenAI writes them."""
    asked = json.loads((ROOT / "examples" / "questions.json").read_text())
    chosen = [question for question in asked if question["name"] in KINDS]
    for question in chosen:
        for part in question["messages"][0]["content"]:
            if part["type"] != "text":
                data = base64.b64encode((ROOT / part.pop("path")).read_bytes()).decode()
                part["type"] = kind = f"{part['type']}_url"
                part[kind] = {"url": f"data:media/any;base64,{data}"}
    return chosen


def figures(url: str) -> dict[str, Any]:
    """What the server measured itself: mean time to first token, tokens."""
    with urlopen(f"{url}/metrics") as response:
        text = response.read().decode()
    found = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
    first = found["vllm:time_to_first_token_seconds_sum"] / found["vllm:time_to_first_token_seconds_count"]
    return {
        "mean_ms_to_first_token": round(1000 * first, 1),
        "prompt_tokens": int(found["vllm:prompt_tokens_total"]),
        "generated_tokens": int(found["vllm:generation_tokens_total"]),
        "resident_mib": round(found["process_resident_memory_bytes"] / 2**20),
    }


def show(runs: list[dict[str, Any]]) -> None:
    """A line for each number of users."""
    table = Table("users", "requests/s", "failed", "median ms", "95% ms", "mean ms to first token", "MiB")
    for run in runs:
        spread = run["milliseconds"]
        middle = [str(max(times[key] for times in spread.values())) for key in ("median", "p95")]
        table.add_row(
            str(run["users"]), f"{run['requests_per_second']:.1f}", f"{run['failures']} of {run['requests']}", *middle,
            f"{run['mean_ms_to_first_token']:.0f}", str(run["resident_mib"]),
        )  # fmt: skip
    Console().print(table)


def _spread(histogram: dict[str, int]) -> dict[str, int]:
    """Median and 95th percentile of {milliseconds: count}."""
    times = [
        int(float(time))
        for time, count in sorted(histogram.items(), key=lambda item: float(item[0]))
        for _ in range(count)
    ]
    return {"median": times[len(times) // 2], "p95": times[int(0.95 * (len(times) - 1))]}


if __name__ == "__main__":
    main()
