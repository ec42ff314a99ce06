"""Completions of plain prompts, tokens, probes, prefixes and origins: the routes beside the chat."""

import re
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from tests.runtime.server.conftest import Server, serve
from tests.runtime.server.test_protection import KEY

ORIGIN = "https://chat.example"
POSTS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")


@pytest.fixture(scope="module")
def echo(bundle) -> Iterator[Any]:
    with serve(bundle, program=("serve_echo.py",)) as server:
        yield server.client()


@pytest.fixture(scope="module")
def guarded(bundle, tmp_path_factory) -> Iterator[Server]:
    """A server with a key, a prefix and one origin."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(KEY)
    options = ("--api-key-file", file, "--root-path", "/ernie", "--allowed-origin", ORIGIN)
    with serve(bundle, *options, program=("serve_echo.py",)) as server:
        yield server


def post(server: Server, path: str, body: object, **headers: str) -> httpx2.Response:
    return httpx2.post(f"{server.url}{path}", json=body, headers=headers, timeout=30)


def complete(client: Any, prompt: Any, **options: Any) -> Any:
    return client.completions.create(model="mini", prompt=prompt, **{"max_tokens": 64, **options})


def test_a_completion(echo):
    answer = complete(echo, "say:a red ball")
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    (choice,) = answer.choices
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, "a red ball", "stop", None)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("n", [1, 2])
def test_several_prompts_each_with_their_choices(echo, n):
    answer = complete(echo, ["say:red", "say:blue ball"], n=n, echo=True)
    texts = [choice.text for choice in sorted(answer.choices, key=lambda choice: choice.index)]
    assert texts == [*["say:redred"] * n, *["say:blue ballblue ball"] * n]
    one, two = (complete(echo, prompt).usage.prompt_tokens for prompt in ("say:red", "say:blue ball"))
    assert answer.usage.prompt_tokens == one + two


def test_token_ids_are_a_prompt(echo):
    url = str(echo.base_url).removesuffix("/v1/")
    tokens = httpx2.post(f"{url}/tokenize", json={"prompt": "say:red"}).json()["tokens"]
    for prompt in (tokens, [tokens]):
        assert complete(echo, prompt, echo=True).choices[0].text == "say:redred"


def test_a_completion_streamed(echo):
    options = {"stream": True, "stream_options": {"include_usage": True}, "echo": True}
    chunks = list(complete(echo, ["say:a b c", "say:d"], **options))
    texts = ["", ""]
    for chunk in chunks[:-1]:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == ["say:a b ca b c", "say:dd"] and chunks[-1].usage.completion_tokens > 4
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == ["stop", "stop"]


def test_thoughts_are_text_of_a_completion(echo):
    assert complete(echo, "say:why</think>red<think>").choices[0].text == "whyred"


def test_log_probabilities_of_a_completion(client):
    answer = complete(client, "User: What?\nAssistant: ", logprobs=2, max_tokens=4, extra_body={"ignore_eos": True})
    lists = answer.choices[0].logprobs
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs) == len(lists.text_offset) == 4
    assert all(logprob <= 0 for logprob in lists.token_logprobs) and all(len(top) <= 2 for top in lists.top_logprobs)
    assert lists.text_offset == sorted(lists.text_offset) and lists.text_offset[0] == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt.0"),
        ({"prompt": [1, "a"]}, "prompt.1"),
        ({"prompt": [10**9]}, "prompt"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": "<|IMAGE_PLACEHOLDER|>"}, "prompt"),
        ({"prompt": "red " * 5000}, "prompt"),
        ({"prompt": ["a"] * 9}, "prompt"),
        ({"prompt": ["a"] * 3, "n": 3}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt": "a", "prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "messages": []}, "messages"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
    ],
)
def test_what_a_completion_cannot_be(server, body, param):
    response = post(server, "/v1/completions", body)
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] is not None and error["param"].startswith(param), error


def test_tokens_there_and_back(server, alone):
    body = {"model": "mini", "prompt": "A red ball <think>", "return_token_strs": True}
    answer = post(server, "/tokenize", body).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["tokens"] == alone.preprocessor.chat.tokenizer.encode("A red ball <think>")
    assert answer["max_model_len"] == alone.manifest.model.max_positions
    assert post(server, "/detokenize", {"tokens": answer["tokens"]}).json() == {"prompt": "A red ball <think>"}


def test_tokens_of_a_conversation(server, client):
    messages = [{"role": "user", "content": "What is red?"}]
    counted = post(server, "/tokenize", {"messages": messages}).json()["count"]
    assert counted == client.chat.completions.create(model="mini", messages=messages).usage.prompt_tokens
    closed = post(server, "/tokenize", {"messages": messages, "add_generation_prompt": False}).json()["count"]
    assert closed < counted


def test_the_tokenizer_describes_itself(server):
    info = httpx2.get(f"{server.url}/tokenizer_info").json()
    assert info["tokenizer_class"] == "LlamaTokenizer" and "enable_thinking" in info["chat_template"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"prompt": "a", "other": 1}, "other"),
        ("/tokenize", {"prompt": "red " * 600_000}, "prompt"),
        ("/detokenize", {"tokens": [10**8]}, "tokens"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
        ("/detokenize", {"tokens": [1] * 70_000}, None),
    ],
)
def test_tokens_that_are_refused(server, path, body, param):
    response = post(server, path, body)
    assert response.status_code == 400 and response.json()["error"]["param"] == param, response.text


@pytest.mark.parametrize("path", POSTS)
def test_every_route_reads_bodies_alike(server, path):
    url = f"{server.url}{path}"
    json_type = {"Content-Type": "application/json"}
    assert httpx2.post(url, content=b"{", headers=json_type).status_code == 400
    assert httpx2.post(url, content=b"[1]", headers=json_type).status_code == 400
    assert httpx2.post(url, content=b"[" * 100_000, headers=json_type).status_code == 400
    assert httpx2.post(url, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    large = b'{"prompt": [' + b"1," * (5 * 2**19) + b"1]}"
    assert httpx2.post(url, content=large, headers=json_type, timeout=60).status_code == 413
    wrong = {"model": "gpt-9", "prompt": "a", "tokens": [1], "messages": [{"role": "user", "content": "x"}]}
    fields = {"/v1/completions": ("prompt",), "/tokenize": ("prompt",), "/detokenize": ("tokens",)}
    body = {name: wrong[name] for name in ("model", *fields.get(path, ("messages",)))}
    assert post(server, path, body).json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("path", [*POSTS, "/tokenizer_info", "/version", "/metrics", "/v1/models", "/v1/embeddings"])
@pytest.mark.parametrize("prefix", ["", "/ernie"])
def test_every_route_needs_the_key_and_a_known_host(guarded, path, prefix):
    method = "POST" if path in POSTS else "GET"
    for headers, status in (({}, 401), ({"Host": "evil.test", "Authorization": f"Bearer {KEY}"}, 403)):
        response = httpx2.request(method, guarded.url + prefix + path, json={}, headers=headers)
        assert response.status_code == status, response.text


@pytest.mark.parametrize("path", ["/ping", "/health", "/ready", "/", "/openapi.json", "/static/page.js"])
@pytest.mark.parametrize("prefix", ["", "/ernie"])
def test_probes_and_the_page_need_none(guarded, path, prefix):
    whole = httpx2.get(guarded.url + prefix + path)
    head = httpx2.head(guarded.url + prefix + path)
    assert whole.status_code == head.status_code == 200 and head.content == b""
    assert head.headers["content-length"] == whole.headers["content-length"]


def test_the_prefix_of_a_proxy(guarded):
    with openai.OpenAI(base_url=f"{guarded.url}/ernie/v1", api_key=KEY) as client:
        assert client.models.list().data[0].id == "mini"
        assert client.completions.create(model="mini", prompt="say:red").choices[0].text == "red"
    page = httpx2.get(f"{guarded.url}/ernie/").text
    addresses = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert addresses and not any(address.startswith("/") for address in addresses)
    assert all(httpx2.get(f"{guarded.url}/ernie/{address}").status_code == 200 for address in addresses)
    without_slash = httpx2.get(f"{guarded.url}/ernie")
    assert without_slash.status_code in (200, 307)
    if without_slash.status_code == 307:
        assert httpx2.URL(without_slash.headers["location"]).path == "/ernie/"
    assert httpx2.get(f"{guarded.url}/erniex/health").status_code == 401


def test_one_origin_may_ask_from_a_browser(guarded):
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    preflight = httpx2.options(f"{guarded.url}/v1/chat/completions", headers={"Origin": ORIGIN, **asked})
    assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    other = httpx2.options(f"{guarded.url}/v1/chat/completions", headers={"Origin": "https://evil.example", **asked})
    assert other.status_code == 400 and "access-control-allow-origin" not in other.headers
    body = {"messages": [{"role": "user", "content": "say:red"}]}
    answer = post(guarded, "/v1/chat/completions", body, Origin=ORIGIN, Authorization=f"Bearer {KEY}")
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-credentials" not in answer.headers
    refused = post(guarded, "/v1/chat/completions", body, Origin=ORIGIN)
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == ORIGIN
    evil = post(guarded, "/v1/chat/completions", body, Origin="https://evil.example", Authorization=f"Bearer {KEY}")
    assert "access-control-allow-origin" not in evil.headers


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/v1/chat/completions"])
def test_a_balancers_options(server, path):
    answer = httpx2.options(f"{server.url}{path}")
    assert answer.status_code == 204 and answer.headers["allow"]
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["embeddings", "audio/speech", "images/generations", "responses/resp_1", "files"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_known_paths_that_are_not_here_answer_400(server, method, path):
    response = httpx2.request(method, f"{server.url}/v1/{path}")
    assert response.status_code == 400 and response.json()["error"]["code"] == "unsupported_endpoint"


def test_the_version_and_both_pings(server):
    assert re.fullmatch(r"\d+\.\d+.*", httpx2.get(f"{server.url}/version").json()["version"])
    assert httpx2.post(f"{server.url}/ping").status_code == 200


@pytest.mark.parametrize(
    ("option", "value"),
    [("--allowed-origin", "*"), ("--allowed-origin", "chat.example"), ("--root-path", "ernie"), ("--root-path", "/a/")],
)
def test_options_of_another_form(bundle, option, value):
    with pytest.raises(AssertionError, match=option[2:].replace("-", "_")):
        with serve(bundle, option, value, program=("serve_echo.py",)):
            pass
