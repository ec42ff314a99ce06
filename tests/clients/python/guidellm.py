"""GuideLLM: load by chat completions, by completions and with images, nothing configured."""

import json
import subprocess
import sys
from pathlib import Path

from tests.clients.probe import BUNDLE, MINI, WORK, check, equal, true

TEXT = "kind=synthetic_text,prompt_tokens=64,output_tokens=16"
COUNT = 6


def load(name: str, *options: str) -> None:
    """Run a benchmark of COUNT requests, and raise AssertionError unless each was answered in full."""
    output = WORK / f"{name}.json"
    command = [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console"]
    command += ["--profile", "kind=concurrent,streams=2", "--constraint", f"kind=max_requests,count={COUNT}"]
    command += ["--tokenizer", f"kind=hf_auto,model={BUNDLE}", "--output", f"kind=json,path={output}", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    print(done.stdout[-2000:], done.stderr[-2000:])
    true(output.is_file(), done.stderr[-300:])
    (benchmark,) = json.loads(output.read_text())["benchmarks"]
    requests = benchmark["requests"]
    equal((len(requests["successful"]), len(requests["errored"])), (COUNT, 0))
    equal({request["output_metrics"]["text_tokens"] for request in requests["successful"]}, {16})


for path in ("/v1/chat/completions", "/v1/completions"):
    with check(path):
        backend = f"kind=openai_http,target={MINI},request_format={path}"
        load(path.replace("/", "-"), "--backend", backend, "--data", TEXT)
with check("images"):
    backend = f"kind=openai_http,target={MINI}"
    load("images", "--backend", backend, "--data", TEXT, "--data", "kind=synthetic_image,width=64,height=64")
