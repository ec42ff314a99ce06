"""llm: its command line with an image, a schema, a tool, and without streaming."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.clients.probe import IMAGE, MINI, MODEL, SCRIPTED, WEATHER, WORK, check, equal, true

os.environ["LLM_USER_PATH"] = str(WORK)
ABILITIES = {"vision": True, "can_stream": True, "supports_schema": True, "supports_tools": True, "api_key_name": "x"}
MODELS = [
    {"model_id": name, "model_name": MODEL, "api_base": f"{url}/v1", **ABILITIES}
    for name, url in (("small", MINI), ("scripted", SCRIPTED))
]
(WORK / "extra-openai-models.yaml").write_text(json.dumps(MODELS))
(WORK / "keys.json").write_text('{"x": "none"}')


def llm(*arguments: str) -> str:
    """Return what the command writes."""
    command = [str(Path(sys.executable).with_name("llm")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    true(done.returncode == 0, done.stderr[-300:])
    return done.stdout.strip()


with check("streaming"):
    equal(llm("-m", "scripted", "say:red"), "red")
with check("chat without a stream"):
    equal(llm("-m", "scripted", "--no-stream", "say:red"), "red")
with check("images"):
    llm("-m", "small", "-a", str(IMAGE), "What colour is the triangle?")  # text first: any answer of the model's
    equal(llm("-m", "scripted", "-a", str(IMAGE), "say:red").split("\n")[0], "redPicture 1:")
with check("structured output"):
    found = json.loads(
        llm("-m", "small", "--schema", "large bool, round bool", "-o", "max_tokens", "400", "Describe a triangle.")
    )
    equal(set(found), {"large", "round"})
with check("tools"):
    function = "def weather(city: str) -> str:\n    return f'say:It is dry in {city}.'\n"
    found = llm("-m", "scripted", "--functions", function, WEATHER)
    true("It is dry in Lima." in found, found)
with check("conversations"):
    equal(llm("-m", "scripted", "-c", "say:blue"), "blue")
