"""EvalScope: load with images and by completions, and an evaluation of questions about images."""

import json
import subprocess
import sys
from pathlib import Path

from tests.clients.probe import ANSWER, BUNDLE, IMAGE_URI, MINI, MODEL, QUESTION, WORK, check, equal, true

COUNT = 4


def evalscope(*arguments: str) -> None:
    """Run the command."""
    command = [str(Path(sys.executable).with_name("evalscope")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=WORK)
    print(done.stdout[-3000:], done.stderr[-3000:])
    true(done.returncode == 0, done.stderr[-300:])


def load(name: str, *options: str) -> None:
    """Run a benchmark of COUNT requests, and raise AssertionError unless all were answered."""
    folder = WORK / name
    common = ("perf", "--model", MODEL, "--tokenizer-path", str(BUNDLE), "--parallel", "2", "--number", str(COUNT))
    lengths = ("--min-prompt-length", "16", "--max-prompt-length", "32", "--min-tokens", "8", "--max-tokens", "8")
    evalscope(*common, *lengths, "--outputs-dir", str(folder), *options)
    (found,) = folder.rglob("benchmark_summary.json")
    summary = json.loads(found.read_text())
    print(summary)
    equal((summary["Succeed requests"], summary["Failed requests"]), (COUNT, 0))


with check("perf with images"):
    size = ("--image-width", "64", "--image-height", "64", "--image-num", "1")
    load("vl", "--url", f"{MINI}/v1/chat/completions", "--api", "openai", "--dataset", "random_vl", *size)
with check("perf by completions"):
    load("text", "--url", f"{MINI}/v1/completions", "--api", "openai", "--dataset", "random")
with check("general_vqa"):
    content = [{"type": "image_url", "image_url": {"url": IMAGE_URI}}, {"type": "text", "text": QUESTION}]
    line = {"messages": [{"role": "user", "content": content}], "answer": ANSWER}
    data = WORK / "vqa"
    data.mkdir()
    (data / "shapes.jsonl").write_text("".join(json.dumps(line) + "\n" for _ in range(3)))
    arguments = json.dumps({"general_vqa": {"local_path": str(data), "subset_list": ["shapes"]}})
    server = ("--model", MODEL, "--api-url", f"{MINI}/v1", "--api-key", "none", "--eval-type", "openai_api")
    evalscope(
        "eval", *server, "--datasets", "general_vqa", "--dataset-args", arguments, "--work-dir", str(WORK / "out")
    )
    (found,) = (WORK / "out").rglob("reports/*/general_vqa.json")
    print(found.read_text()[:2000])
    true(json.loads(found.read_text())["score"] > 0.9, found.read_text()[:300])
