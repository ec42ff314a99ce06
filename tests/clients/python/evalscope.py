"""EvalScope: evaluations of pictures and of text, and a load with usage."""

import json
import subprocess
import sys
from pathlib import Path

from tests.clients.probe import ANSWER, BUNDLE, IMAGE_URI, MINI, MODEL, QUESTION, SCRIPTED, WORK, check, true

COUNT = 3


def command(*options: str) -> None:
    """Run evalscope, and raise AssertionError with its last words unless it ends well."""
    program = str(Path(sys.executable).with_name("evalscope"))
    done = subprocess.run([program, *options], capture_output=True, text=True, timeout=280)
    print(done.stdout[-3000:], done.stderr[-3000:])
    true(done.returncode == 0, done.stderr[-300:])


def evaluated(dataset: str, url: str, rows: list[dict[str, object]]) -> list[str]:
    """Evaluate rows of a dataset of one's own, and return the model's answers."""
    data = WORK / dataset / "data"
    data.mkdir(parents=True)
    (data / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "own_test.jsonl").write_text((data / "own.jsonl").read_text())
    own = json.dumps({dataset: {"local_path": str(data), "subset_list": ["own"]}})
    work = WORK / dataset / "out"
    common = ("--model", MODEL, "--api-url", f"{url}/v1", "--api-key", "none", "--eval-type", "openai_api")
    command("eval", *common, "--datasets", dataset, "--dataset-args", own, "--work-dir", str(work))
    (predictions,) = work.rglob("predictions/**/*.jsonl")
    found = [json.loads(line) for line in predictions.read_text().splitlines()]
    return [row["model_output"]["choices"][0]["message"]["content"] for row in found]


with check("general_vqa: images"):
    content = [{"type": "image_url", "image_url": {"url": IMAGE_URI}}, {"type": "text", "text": QUESTION}]
    rows = [{"messages": [{"role": "user", "content": content}], "answer": ANSWER}] * COUNT
    answers = evaluated("general_vqa", MINI, rows)
    true(answers == [ANSWER] * COUNT, answers)
with check("general_qa"):
    answers = evaluated("general_qa", SCRIPTED, [{"query": f"say:{ANSWER}", "response": ANSWER}] * COUNT)
    true(answers == [ANSWER] * COUNT, answers)
with check("perf, streamed"):
    load = ("--url", f"{MINI}/v1/chat/completions", "--model", MODEL, "--api", "openai", "--dataset", "random")
    sizes = ("--min-prompt-length", "32", "--max-prompt-length", "32", "--max-tokens", "16", "--min-tokens", "16")
    amount = ("--number", "6", "--parallel", "2", "--tokenizer-path", str(BUNDLE), "--outputs-dir", str(WORK / "perf"))
    command("perf", *load, *sizes, *amount)
    (summary,) = (WORK / "perf").rglob("benchmark_summary.json")
    report = json.loads(summary.read_text())
    true(report["Success Requests"] == 6, report)
