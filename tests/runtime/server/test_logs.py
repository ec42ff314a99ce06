"""The server's logs and the series of a dashboard: what operators see of requests."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.paths import MEDIA
from tests.runtime.server.conftest import Server, serve

ASKED = [{"role": "user", "content": "say:a red ball"}]
ECHO = ("serve_echo.py",)


@pytest.fixture(scope="module", params=["text", "json"])
def logged(bundle, request) -> Iterator[tuple[Server, str]]:
    with serve(bundle, "--access-log", "--log-format", request.param, program=ECHO) as server:
        yield server, request.param


def line(logged: tuple[Server, str]) -> dict[str, str]:
    """Return the fields of the next line of the access log."""
    server, form = logged
    assert server.process.stdout is not None
    text = server.process.stdout.readline()
    if form == "json":
        return {name: str(value) for name, value in json.loads(text).items()}
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO request ", text), text
    words = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', text)
    return {name: json.loads(value) if value.startswith('"') else value for name, value in words}


def test_an_answer_is_one_line(logged):
    url = f"{logged[0].url}/v1/chat/completions?secret=1"
    answer = httpx2.post(url, json={"messages": ASKED}, headers={"X-Request-Id": "mine"})
    seen = line(logged)
    assert (seen["method"], seen["path"], seen["status"]) == ("POST", "/v1/chat/completions", "200")
    assert seen["request_id"] == "mine" and seen["client"] == "127.0.0.1" and float(seen["seconds"]) > 0
    usage = answer.json()["usage"]
    assert int(seen["prompt_tokens"]) == usage["prompt_tokens"] and int(seen["bytes"]) == len(answer.content)
    assert int(seen["completion_tokens"]) == usage["completion_tokens"]


def test_a_refusal_says_which_field(logged):
    httpx2.post(f"{logged[0].url}/v1/chat/completions", json={"messages": ASKED, "temprature": 1})
    seen = line(logged)
    assert (seen["status"], seen["code"], seen["param"]) == ("400", "unknown_parameter", "temprature")
    httpx2.get(f"{logged[0].url}/health", headers={"Host": "evil.test"})
    assert line(logged)["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    "path",
    [
        "/a%0A2026-01-01T00:00:00.000Z INFO request status=200",
        '/x" status=200 "',
        "/%1b[31m",
        "/ä%E2%80%A8b",
        "/" + "x" * 5000,
    ],
)
def test_a_line_cannot_be_forged(logged, path):
    httpx2.get(f"{logged[0].url}{path}")
    seen = line(logged)
    assert seen["status"] == "404" and len(seen["path"]) <= 300
    httpx2.get(f"{logged[0].url}/ready")
    assert line(logged)["path"] == "/ready", "each request is one line"


def test_a_client_that_leaves(logged):
    with httpx2.stream(
        "POST", f"{logged[0].url}/v1/chat/completions", json={"messages": ASKED, "stream": True}
    ) as response:
        next(response.iter_raw(1))
    assert line(logged)["path"] == "/v1/chat/completions"


def test_without_the_option_nothing_is_logged(bundle):
    with serve(bundle, program=ECHO) as server:
        httpx2.get(f"{server.url}/ready")
        server.process.terminate()
        out, err = server.process.communicate()
    assert (out, err) == ("", "")


def test_faults_are_logged_with_their_request(bundle, tmp_path):
    """An answer that fails within the server; text and JSON name the request, and a line is a line."""
    for form in ("text", "json"):
        with serve(bundle, "--log-format", form, program=("serve_failing.py",)) as server:
            answer = httpx2.post(
                f"{server.url}/v1/chat/completions", json={"messages": ASKED}, headers={"X-Request-Id": "mine"}
            )
            assert answer.status_code == 500
            server.process.terminate()
            _, err = server.process.communicate()
        first, *rest = err.splitlines()
        assert "mine" in first and "a request failed" in first
        if form == "json":
            assert not rest and "out of order" in json.loads(first)["exception"]
        else:
            assert rest and all(text.startswith("  ") for text in rest), err


def series(server: Server) -> dict[str, float]:
    text = httpx2.get(f"{server.url}/metrics").text
    families = text_string_to_metric_families(text)
    return {
        sample.name: sample.value for family in families for sample in family.samples if "bucket" not in sample.name
    }


def test_the_series_of_vllms_dashboard(bundle, data_uri):
    picture = {"type": "image_url", "image_url": {"url": data_uri((MEDIA / "shapes.png").read_bytes())}}
    asked: list[Any] = [{"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]}]
    with serve(bundle) as server:
        for _ in range(2):
            server.client().chat.completions.create(model="mini", messages=asked, n=2, max_tokens=4)
        time.sleep(0.1)
        found = series(server)
    for name in ("queue_time", "prefill_time", "decode_time", "inference_time"):
        assert found[f"vllm:request_{name}_seconds_count"] == 4 and found[f"vllm:request_{name}_seconds_sum"] >= 0
    assert found["vllm:request_max_num_generation_tokens_count"] == 2
    assert found["vllm:request_prefill_time_seconds_sum"] > 0
    assert (found["vllm:mm_cache_queries_total"], found["vllm:mm_cache_hits_total"]) == (2, 1)


def test_the_size_of_the_cache_is_the_one_that_refuses(bundle):
    with serve(bundle, "--kv-cache", 0.001) as server:
        families = text_string_to_metric_families(httpx2.get(f"{server.url}/metrics").text)
        (sample,) = (s for family in families for s in family.samples if s.name == "vllm:cache_config_info")
        body = {"messages": [{"role": "user", "content": "red " * 3000}], "max_tokens": 1}
        error = httpx2.post(f"{server.url}/v1/chat/completions", json=body).json()["error"]
        longest = httpx2.get(f"{server.url}/v1/models").json()["data"][0]["max_model_len"]
    tokens = int(sample.labels["num_gpu_blocks"]) * int(sample.labels["block_size"])
    assert f"expected at most {tokens} tokens" in error["message"] and error["code"] == "context_length_exceeded"
    assert sample.labels["kv_cache_size_tokens"] == str(tokens) and sample.value == 1
    assert float(sample.labels["kv_cache_max_concurrency"]) == pytest.approx(tokens / longest)
    assert int(sample.labels["kv_cache_memory_bytes"]) == int(0.001 * 2**30)
    assert sample.labels["enable_prefix_caching"] == "True" and sample.labels["model_name"] == "mini"
