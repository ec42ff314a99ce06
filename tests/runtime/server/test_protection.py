"""Keys, hosts and limits: what a server refuses, how it says so, and that it goes on afterwards."""

import io
import json
import re
import struct
import zlib

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from ernie_export.runtime.cli import serve as cli
from tests.paths import MEDIA

KEY = "a-key-of-some-length"
OTHER = "another-key-of-length"
ASKED = [{"role": "user", "content": "How many sides has a triangle?"}]
LIMITS = {
    "--max-body": 1, "--max-media": 3, "--max-pixels": 40_000, "--max-frames": 100, "--max-seconds": 20,
    "--max-prompt-tokens": 100, "--max-new-tokens": 64, "--max-choices": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def limited(serving, tmp_path_factory):
    """A server with small limits and two keys, allowed to fetch from a host that only points here."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"{KEY}\n\n  {OTHER}\n")
    options = [text for pair in LIMITS.items() for text in pair]
    with serving("--api-key-file", file, "--allow-url", "localhost", *options) as server:
        yield server


@pytest.fixture(scope="module")
def ask(limited):
    """ask(parts): the answer, or the error's body, to one user message."""
    client = limited.client(KEY)

    def ask(*parts, **options):
        messages = [{"role": "user", "content": list(parts)}]
        try:
            return client.chat.completions.create(model="mini", messages=messages, **{"max_tokens": 2, **options})
        except openai.APIStatusError as e:
            assert isinstance(e.body, dict)
            assert set(e.body) == {"message", "type", "param", "code"} and "Traceback" not in e.body["message"]
            assert "\n" not in e.body["message"] and len(e.body["message"]) < 400
            return e

    return ask


def image(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def video(url: str) -> dict:
    return {"type": "video_url", "video_url": {"url": url}}


def png(width: int, height: int) -> bytes:
    """A picture that says it is so large; its data is a few bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def real_png(side: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/metrics", "/nothing"])
@pytest.mark.parametrize(
    "given", [None, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer", f"Basic {KEY}", KEY, "Bearer ä"]
)
def test_without_a_key_nothing(limited, path, given):
    headers = {"Authorization": given.encode()} if given else {}
    response = httpx2.request("POST" if "chat" in path else "GET", limited.url + path, headers=headers)
    assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_every_key_of_the_file(limited, key):
    assert limited.client(key).models.list().data[0].id == "mini"


def test_probes_need_no_key(limited):
    assert httpx2.get(f"{limited.url}/health").json() == {"status": "ok"}
    assert httpx2.get(f"{limited.url}/ready").json() == {"status": "ready"}
    assert "/v1/chat/completions" in httpx2.get(f"{limited.url}/openapi.json").json()["paths"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("LOCALHOST", 200), ("evil.test", 403), ("", 403),
        ("localhost.evil.test", 403), ("evil.test:127.0.0.1", 403), ("[::1].evil.test", 403), ("10.0.0.1", 403),
    ],
)  # fmt: skip
def test_a_page_that_calls_this_machine_by_its_own_name(server, host, status):
    assert httpx2.get(f"{server.url}/v1/models", headers={"Host": host}).status_code == status


def test_a_refused_host_is_named_with_the_option(server):
    response = httpx2.get(f"{server.url}/ready", headers={"Host": "model.example"})
    message = response.json()["error"]["message"]
    assert "found 'model.example'" in message and "--allowed-host" in message


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nothing", "/v1/models/other"])
def test_a_requests_own_id_comes_back(server, path):
    response = httpx2.get(f"{server.url}{path}", headers={"X-Request-Id": "abc-1:2/3"})
    assert response.headers.get_list("x-request-id") == ["abc-1:2/3"]


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 129, "\xe9".encode("latin-1")])
def test_without_a_usable_id_there_is_a_new_one(server, given):
    headers = {} if given is None else {"X-Request-Id": given}
    ids = {httpx2.get(f"{server.url}/health", headers=headers).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2 and all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


def test_an_id_comes_with_refusals_and_streams(server, limited):
    refused = httpx2.get(f"{limited.url}/v1/models", headers={"X-Request-Id": "mine"})
    assert refused.status_code == 401 and refused.headers["x-request-id"] == "mine"
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "stream": True}
    answer = httpx2.post(f"{server.url}/v1/chat/completions", json=body, headers={"X-Request-Id": "mine"})
    assert answer.status_code == 200 and answer.headers["x-request-id"] == "mine" and "[DONE]" in answer.text


def test_no_other_page_may_ask(server):
    headers = {"Origin": "http://evil.test", "Access-Control-Request-Method": "POST"}
    answer = httpx2.options(f"{server.url}/v1/chat/completions", headers=headers)
    assert answer.status_code == 204 and not [name for name in answer.headers if name.startswith("access-control")]
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        body = json.dumps({"messages": ASKED}).encode()
        headers = {"Content-Type": kind} if kind else {}
        assert httpx2.post(f"{server.url}/v1/chat/completions", content=body, headers=headers).status_code == 415


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/chat/completions", 405), ("PUT", "/health", 405)],
)
def test_the_frameworks_own_errors_have_openais_form(server, method, path, status):
    response = httpx2.request(method, server.url + path)
    assert response.status_code == status and set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"messages": NaN}', b'"\xff"', b'{"messages": "\\ud800"}']
)
def test_what_is_no_request(server, body):
    headers = {"Content-Type": "application/json; charset=utf-8"}
    response = httpx2.post(f"{server.url}/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"


def test_large_bodies(limited):
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    url = f"{limited.url}/v1/chat/completions"

    def pieces():
        for _ in range(40):
            yield b" " * 65536

    for content in (b" " * (2**20 + 1), pieces()):  # declared, and not
        response = httpx2.post(url, content=content, headers=headers)
        assert response.status_code == 413 and response.json()["error"]["code"] == "body_too_large"
    assert (
        limited.client(KEY).chat.completions.create(model="mini", messages=ASKED).choices[0].message.content == "three"
    )


def test_text_is_limited_though_media_may_be_large(server):
    """Five MiB of small numbers would take a hundred; a picture of that size is fine, as far as this limit goes."""
    headers = {"Content-Type": "application/json"}
    numbers = b'{"messages": [' + b"1," * (5 * 2**19) + b"1]}"
    url = f"{server.url}/v1/chat/completions"
    assert httpx2.post(url, content=numbers, headers=headers, timeout=60).status_code == 413
    picture = {"messages": [{"role": "user", "content": [image(f"data:image/png;base64,{'A' * 5 * 2**20}")]}]}
    response = httpx2.post(url, content=json.dumps(picture), headers=headers, timeout=60)
    assert response.status_code == 400 and response.json()["error"]["param"] == "messages.0.content.0"


@pytest.mark.parametrize(
    "url",
    [
        "/etc/passwd", "file:///etc/passwd", "FILE:///etc/passwd", "examples/media/shapes.png", "", "data:,x",
        "data:image/png,x", "data:image/png;base64,!!", "data:image/png;base64,", "ftp://localhost/a.png",
        "http://example.com/a.png", "http://localhost/a.png", "https://localhost/a.png", "http://127.0.0.1/a.png",
        "http://localhost:22/a.png", " file:///etc/passwd", "data:text/plain;base64,ZmlsZTovLy9ldGMvcGFzc3dk",
    ],
)  # fmt: skip
@pytest.mark.parametrize("part", [image, video])
def test_what_is_neither_data_nor_an_allowed_address(ask, part, url):
    error = ask(part(url))
    assert error.status_code == 400 and error.body["param"].startswith("messages.0.content.0")
    assert error.body["code"] in ("invalid_url", "invalid_base64", "url_not_allowed", "invalid_value")


def test_decompression_bombs_are_refused_before_decoding(ask, data_uri):
    error = ask(image(data_uri(png(10_000, 10_000))))
    assert error.status_code == 400 and "10000×10000" in error.message
    assert error.body["param"] == "messages.0.content.0"


def test_pictures_share_the_pixels_of_a_request(ask, data_uri):
    large = image(data_uri(real_png(190)))
    assert ask(large).usage.prompt_tokens > 8
    error = ask(image(data_uri(real_png(28))), large)
    assert error.status_code == 400 and error.body["param"] == "messages.0.content.1" and "20000" in error.message


@pytest.mark.parametrize(
    ("parts", "options", "problem"),
    [
        (4, {}, "at most 3"),
        (0, {"n": 3}, "at most 2"),
    ],
)
def test_counts(ask, data_uri, parts, options, problem):
    error = ask(*[image(data_uri(real_png(28)))] * parts, {"type": "text", "text": "?"}, **options)
    assert error.status_code == 400 and problem in error.message and error.code == "too_large"


def test_an_answer_is_no_longer_than_the_server_lets_it_be(ask):
    """As vLLM does, a longer length is cut to what there may be."""
    answer = ask({"type": "text", "text": "?"}, max_tokens=65, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 64 and answer.choices[0].finish_reason == "length"


def test_long_prompts(ask):
    error = ask({"type": "text", "text": "red " * 120})
    assert error.status_code == 400 and error.code == "context_length_exceeded"


def test_clips(ask, data_uri):
    clip = (MEDIA / "passing.mp4").read_bytes()
    error = ask(video(data_uri(clip, "video")))
    assert "sampled frames" in error.message, "40,000 pixels do not hold all of its frames"
    error = ask(video(data_uri(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "video")))
    assert error.status_code == 400 and error.body["param"] == "messages.0.content.0"


@pytest.mark.parametrize("data", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", b"II*\0" + bytes(64)])
def test_formats_that_are_not_of_the_web(ask, data_uri, data):
    assert ask(image(data_uri(data))).status_code == 400


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--host", "0.0.0.0"], "expected --api-key-file"),
        (["--host", "::"], "expected --api-key-file"),
        (["--host", "example.test"], "expected --api-key-file"),
        (["--api-key-file", "missing"], "No such file"),
        (["--api-key-file", "empty"], "expected at least one key"),
        (["--api-key-file", "short"], "at least 16 characters"),
        (["--api-key-file", "odd"], "ASCII"),
        (["--host", "0.0.0.0", "--api-key-file", "empty"], "expected at least one key"),
        (["--host", "192.0.2.1", "--api-key-file", "good"], "address to listen on"),
        (["--timeout", "0"], "timeout"),
        (["--rows", "0"], "max-num-seqs"),
        (["--port", "70000"], "70000"),
    ],
)
def test_a_server_that_must_not_start(tmp_path, monkeypatch, capsys, options, problem):
    """One line, exit code 2, nothing loaded."""
    for name, text in (("empty", "\n \n"), ("short", f"{KEY}\nabc\n"), ("odd", "ä" * 20), ("good", KEY)):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        # A server that got past its options would find no bundle, and say that instead.
        cli.main([str(tmp_path / "no-bundle"), "--port", "0", *options])
    out, err = capsys.readouterr()
    assert end.value.code == 2 and not out
    assert problem in err and err.count("\n") == 1, err
