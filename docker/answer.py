"""Start the server of an installed image as docker/Dockerfile starts it, and ask it: part of docker/check.sh.

    VENV/bin/python docker/answer.py IMAGE BUNDLE KEYS

The ENTRYPOINT and the HEALTHCHECK are read from the Dockerfile, with the places of the bundle and the keys, and a free
port, put in; without a GPU the server runs on the CPU.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

DOCKERFILE = Path(__file__).with_name("Dockerfile")


def instruction(image: str, name: str) -> list[str]:
    """The JSON form of an image's ENTRYPOINT or HEALTHCHECK, its own or that of the stage that it begins from."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    stage = re.search(rf"^FROM (\S+) AS {image}\n(.*?)(?=^FROM |\Z)", text, re.MULTILINE | re.DOTALL)
    if stage is None:
        raise SystemExit(f"{DOCKERFILE}: expected an image {image} with {name}, found none")
    found = re.search(rf"^{name} [^\[\n]*(\[.*\])$", stage[2], re.MULTILINE)
    return json.loads(found[1]) if found else instruction(stage[1], name)


def main(image: str, bundle: str, keys: str) -> None:
    """Prints what was seen; exits with an error where something is not as it should be."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    places = {"/bundle": bundle, "/run/secrets/api_keys": keys, "cuda": "cpu"}
    command = [places.get(word, word) for word in instruction(image, "ENTRYPOINT")]
    probe = [word.replace(":8000", f":{port}") for word in instruction(image, "HEALTHCHECK")]
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    server = subprocess.Popen([*command, "--port", port], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            raise SystemExit(f"{image}: expected the server to start, found exit code {server.wait()}")
        for _ in range(30):
            healthy = subprocess.run(probe, env=environment, stderr=subprocess.DEVNULL).returncode == 0
            if healthy:
                break
            time.sleep(1)
        statuses = ask(f"http://127.0.0.1:{port}", Path(keys).read_text().split()[0])
        server.send_signal(signal.SIGTERM)
        code = server.wait(30)
    finally:
        server.kill()
    if not healthy or statuses != (401, 200) or code != 0:
        raise SystemExit(f"{image}: expected health, 401, 200, exit 0; found {healthy}, {statuses}, exit {code}")
    try:
        Path(__file__).with_name("written").write_text("")
    except OSError as e:
        root = f"on a read-only root ({e.strerror})"
    else:
        Path(__file__).with_name("written").unlink()
        root = "on a root that may be written to"
    print(f"{image}: healthy, refuses without a key, answers with it, ends on SIGTERM; user {os.getuid()}, {root}")


def ask(url: str, key: str) -> tuple[int, int]:
    """Statuses of a question without a key and with it."""
    question = {"messages": [{"role": "user", "content": "How many sides has a triangle?"}], "max_tokens": 8}
    statuses = []
    for headers in ({}, {"Authorization": f"Bearer {key}"}):
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(question).encode(), {"Content-Type": "application/json"} | headers
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                statuses.append(reply.status if json.load(reply)["choices"][0]["finish_reason"] else 0)
        except urllib.error.HTTPError as e:
            statuses.append(e.code)
    return statuses[0], statuses[1]


if __name__ == "__main__":
    main(*sys.argv[1:])
