"""LiteLLM: its SDK under both names that it has for such servers, and its proxy between the openai client and us."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from socket import socket

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its list of models comes from a network otherwise
import litellm
import openai
from pydantic import BaseModel

from tests.clients.probe import (
    ANSWER,
    IMAGE_URI,
    MINI,
    MODEL,
    QUESTION,
    SCRIPTED,
    THOUGHTS,
    WEATHER,
    WORK,
    check,
    equal,
    true,
)


class Shape(BaseModel):
    """A shape."""

    large: bool


ASKED = [
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": IMAGE_URI}}, {"type": "text", "text": QUESTION}],
    }
]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = [{"role": "user", "content": WEATHER}]
KEY = "sk-only-for-this-run-0123456789abcdef"  # without one the proxy does not start
litellm.suppress_debug_info = True


def try_sdk(prefix: str) -> None:
    """Try what the SDK does with models of a provider."""
    name = f"{prefix}/{MODEL}"
    mini = {"model": name, "api_base": f"{MINI}/v1", "api_key": "none", "max_retries": 0}
    scripted = mini | {"api_base": f"{SCRIPTED}/v1"}
    with check(f"{prefix}: images"):
        equal(litellm.completion(messages=ASKED, **mini).choices[0].message.content, ANSWER)
    with check(f"{prefix}: streaming"):
        pieces = list(litellm.completion(messages=ASKED, stream=True, stream_options={"include_usage": True}, **mini))
        equal("".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices), ANSWER)
        true(any(getattr(piece, "usage", None) for piece in pieces))
    with check(f"{prefix}: structured output"):
        asked = [{"role": "user", "content": "Describe a triangle."}]
        Shape.model_validate_json(
            litellm.completion(messages=asked, response_format=Shape, **mini).choices[0].message.content
        )
    with check(f"{prefix}: tools"):
        answer = litellm.completion(messages=CALL, tools=[TOOL], max_tokens=512, **scripted).choices[0]
        equal(json.loads(answer.message.tool_calls[0].function.arguments), {"city": "Lima"})
        result = {"role": "tool", "tool_call_id": answer.message.tool_calls[0].id, "content": "say:It is dry."}
        turns = [*CALL, answer.message, result]
        after = litellm.completion(messages=turns, tools=[TOOL], **scripted).choices[0].message.content
        true(after.startswith("It is dry."), after)
    with check(f"{prefix}: reasoning"):
        asked = [{"role": "user", "content": THOUGHTS}]
        extra = {"chat_template_kwargs": {"enable_thinking": True}}
        message = litellm.completion(messages=asked, extra_body=extra, **scripted).choices[0].message
        equal((message.reasoning_content, message.content), ("It has three corners.", ANSWER))
    with check(f"{prefix}: responses"):
        answer = litellm.responses(input="say:red", **scripted)
        equal(answer.output_text, ANSWER)
    with check(f"{prefix}: text_completion"):
        equal(litellm.text_completion(prompt="say:red", **scripted).choices[0].text.strip(), ANSWER)


@contextmanager
def proxy():
    """Run the proxy with three models of ours and give an openai client for it."""
    with socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    models = [
        {"model_name": "mini", "litellm_params": {"model": f"hosted_vllm/{MODEL}", "api_base": f"{MINI}/v1"}},
        {"model_name": "scripted", "litellm_params": {"model": f"hosted_vllm/{MODEL}", "api_base": f"{SCRIPTED}/v1"}},
    ]
    config = WORK / "litellm.yaml"
    config.write_text(json.dumps({"model_list": models}))
    command = [str(Path(sys.executable).with_name("litellm")), "--config", str(config), "--port", str(port)]
    process = subprocess.Popen([*command, "--host", "127.0.0.1"], env={**os.environ, "LITELLM_MASTER_KEY": KEY})
    try:
        for _ in range(180):
            time.sleep(1)
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5).read()
                break
            except OSError:
                true(process.poll() is None, "the proxy ended")
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0)
    finally:
        process.terminate()
        process.wait(timeout=30)


def try_proxy(client: openai.OpenAI) -> None:
    """Try the openai client through the proxy."""
    with check("proxy: images"):
        equal(client.chat.completions.create(model="mini", messages=ASKED).choices[0].message.content, ANSWER)
    with check("proxy: streaming"):
        pieces = list(client.chat.completions.create(model="mini", messages=ASKED, stream=True))
        equal("".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices), ANSWER)
    with check("proxy: structured output"):
        asked = [{"role": "user", "content": "Describe a triangle."}]
        answer = client.chat.completions.parse(model="mini", messages=asked, response_format=Shape)
        true(isinstance(answer.choices[0].message.parsed, Shape))
    with check("proxy: tools"):
        answer = client.chat.completions.create(model="scripted", messages=CALL, tools=[TOOL], max_tokens=512)
        equal(json.loads(answer.choices[0].message.tool_calls[0].function.arguments), {"city": "Lima"})
    with check("proxy: responses"):
        equal(client.responses.create(model="scripted", input="say:red").output_text, ANSWER)
    with check("proxy: nothing that we refuse takes the deployment out"):
        for ask in (
            lambda: client.embeddings.create(model="mini", input="red"),
            lambda: client.responses.create(model="mini", input="red", previous_response_id="resp_1"),
            lambda: client.chat.completions.create(model="mini", messages=ASKED, extra_body={"use_beam_search": True}),
        ):
            try:
                ask()
            except openai.APIStatusError:
                pass
            else:
                raise AssertionError("not refused")
            equal(client.chat.completions.create(model="mini", messages=ASKED).choices[0].message.content, ANSWER)


try_sdk("openai")
try_sdk("hosted_vllm")
with proxy() as through:
    try_proxy(through)
