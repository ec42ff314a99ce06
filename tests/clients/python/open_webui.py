"""Open WebUI: its server in front of ours, asked as its page does: models, a chat with its own tools, and an image."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import Any

from tests.clients.probe import ANSWER, IMAGE_URI, MINI, MODEL, QUESTION, SCRIPTED, WORK, called, check, equal, true


@contextmanager
def page(url: str):
    """Run Open WebUI before a server and give a function that asks it: a path, and a body."""
    with socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    data = WORK / str(port)
    settings = {
        "OPENAI_API_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "none", "ENABLE_OLLAMA_API": "false",
        "OFFLINE_MODE": "true",
        "WEBUI_AUTH": "false", "DATA_DIR": str(data), "WEBUI_SECRET_KEY": "for-this-run-alone",
        "BYPASS_EMBEDDING_AND_RETRIEVAL": "true", "RAG_EMBEDDING_ENGINE": "openai", "AUDIO_STT_ENGINE": "openai",
    }  # fmt: skip
    command = [str(Path(sys.executable).with_name("open-webui")), "serve", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | settings)
    token = ""

    def ask(path: str, body: Any = None) -> str:
        """Return what a path answers."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
        try:
            return urllib.request.urlopen(request, timeout=120).read().decode()
        except urllib.error.HTTPError as e:
            raise AssertionError(f"{path}: {e.code} {e.read()[:300].decode()}") from e

    try:
        for _ in range(240):
            time.sleep(1)
            try:
                ask("/health")
                break
            except OSError:
                true(process.poll() is None, "it ended")
        token = json.loads(ask("/api/v1/auths/signin", {"email": "", "password": ""}))["token"]
        yield ask
    finally:
        process.terminate()
        process.wait(timeout=60)


def answered(text: str) -> str:
    """Return the text of a stream of chat completions."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    true(chunks and not any("error" in chunk for chunk in chunks), text[:300])
    return "".join(
        choice["delta"].get("content") or ""
        for chunk in chunks
        for choice in chunk.get("choices", ())
        if "delta" in choice
    )


PICTURE = [
    {"type": "image_url", "image_url": {"url": IMAGE_URI}},
    {"type": "text", "text": QUESTION},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_current_timestamp",
            "description": "Get the current Unix timestamp in seconds.",
            "parameters": {"type": "object", "properties": {}, "required": []},
        },
    }
]
with page(MINI) as ask:
    with check("models"):
        equal([model["id"] for model in json.loads(ask("/api/models"))["data"]], [MODEL])
    with check("images, streamed"):
        body = {"model": MODEL, "messages": [{"role": "user", "content": PICTURE}], "stream": True}
        equal(answered(ask("/api/chat/completions", body)), ANSWER)
    with check("the page's default chat, with its tools"):
        body |= {
            "tools": TOOLS,
            "params": {},
            "features": {"web_search": False},
            "stream_options": {"include_usage": True},
        }
        answered(ask("/api/chat/completions", body))
    for task in ("title", "tags", "follow_up"):
        with check(f"task: {task}"):
            said = {"model": MODEL, "messages": [{"role": "user", "content": "What is red?"}]}
            true(json.loads(ask(f"/api/v1/tasks/{task}/completions", said))["choices"])
with page(SCRIPTED) as ask, check("a call of a tool, streamed"):
    said = f"say:{called('get_current_timestamp', '{}')}"
    body = {"model": MODEL, "messages": [{"role": "user", "content": said}], "stream": True, "tools": TOOLS}
    true('"name":"get_current_timestamp"' in ask("/api/chat/completions", body).replace(": ", ":"))
