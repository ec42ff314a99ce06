"""A server under load and at its end: queues that are full, clients that leave, deadlines, SIGTERM; and its figures."""

import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from typing import Any

import httpx2
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.paths import PROGRAMS
from tests.runtime.server.conftest import SERVE

ASKED = [{"role": "user", "content": "How many sides has a triangle?"}]
# Longer than any test waits; each ends in another way.
ENDLESS: dict[str, Any] = {"model": "mini", "messages": ASKED, "max_tokens": 3900, "extra_body": {"min_tokens": 3900}}


@pytest.fixture(scope="module")
def narrow(serving):
    """One answer at a time, one more waits."""
    with serving("--rows", 1, "--queue", 1) as server:
        yield server


def start(client, **options):
    """A stream of an endless answer that has begun."""
    stream = client.chat.completions.create(**ENDLESS, stream=True, **options)
    next(stream), next(stream)
    return stream


def metric(server, name: str, **labels: str) -> float:
    text = httpx2.get(f"{server.url}/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "never came about"
        time.sleep(0.02)


def in_hand(server) -> float:
    return metric(server, "vllm:num_requests_running") + metric(server, "vllm:num_requests_waiting")


def test_the_first_line_is_one_printable_line(bundle):
    """The name of a bundle's folder is whatever its sender has called it."""
    name = "a\x1b]0;title\x07\nb http://elsewhere"
    program, *arguments = SERVE
    command = [sys.executable, str(PROGRAMS / program), *arguments]
    command += [str(bundle), "--port", "0", "--model-name", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
        assert process.stdout.read() == ""
    assert line.startswith(r"a\x1b]0;title\x07 b http://elsewhere at http://127.0.0.1:") and line[:-1].isprintable()


def test_a_full_queue_refuses_and_says_when_to_come_again(narrow):
    client = narrow.client()
    running = start(client)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(lambda: client.chat.completions.create(model="mini", messages=ASKED))
        until(lambda: in_hand(narrow) == 2)
        with pytest.raises(openai.RateLimitError) as refusal:
            client.chat.completions.create(model="mini", messages=ASKED)
        assert refusal.value.code == "queue_full" and 1 <= int(refusal.value.response.headers["retry-after"]) <= 60
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="mini", messages=ASKED, n=2)
        running.close()
        assert waiting.result(timeout=30).choices[0].message.content == "three"
    until(lambda: in_hand(narrow) == 0)
    assert metric(narrow, "ernie:requests_refused_total", code="queue_full") == 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(narrow, stream):
    before = metric(narrow, "vllm:request_success_total", finished_reason="abort")
    body = json.dumps({**ENDLESS, **ENDLESS["extra_body"], "extra_body": None, "stream": stream}).encode()
    body = body.replace(b'"extra_body": null, ', b"")
    host, port = narrow.url.removeprefix("http://").split(":")
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: metric(narrow, "vllm:num_requests_running") == 1)
    until(lambda: in_hand(narrow) == 0)
    assert metric(narrow, "vllm:request_success_total", finished_reason="abort") == before + 1
    answer = narrow.client().chat.completions.create(model="mini", messages=ASKED)
    assert answer.choices[0].message.content == "three"


def test_a_deadline(serving):
    with serving("--timeout", 1, "--rows", 1) as server:
        client = server.client()
        with pytest.raises(openai.InternalServerError) as late:
            client.chat.completions.create(**ENDLESS)
        assert late.value.status_code == 504 and late.value.code == "timeout"
        with pytest.raises(openai.APIError, match="deadline") as ended:
            list(start(client))
        assert ended.value.code == "timeout"
        until(lambda: in_hand(server) == 0)
        assert client.chat.completions.create(model="mini", messages=ASKED).choices[0].message.content == "three"


def test_sigterm_finishes_what_runs(serving):
    """Not ready any more, nothing new taken, what runs ends as it would have; then exit 0."""
    with serving("--rows", 2) as server:
        client = server.client()
        options = {"max_tokens": 60, "extra_body": {"min_tokens": 60}, "temperature": 1.0, "seed": 1}
        whole = client.chat.completions.create(model="mini", messages=ASKED, **options).choices[0].message.content
        options |= {"max_tokens": 400, "extra_body": {"min_tokens": 400}}
        stream = client.chat.completions.create(model="mini", messages=ASKED, stream=True, **options)
        pieces = [next(stream), next(stream)]
        server.process.send_signal(signal.SIGTERM)
        until(lambda: httpx2.get(f"{server.url}/ready").status_code == 503)
        assert httpx2.get(f"{server.url}/health").status_code == 200
        with pytest.raises(openai.InternalServerError) as refusal:
            client.chat.completions.create(model="mini", messages=ASKED)
        assert refusal.value.status_code == 503 and refusal.value.code == "shutting_down"
        pieces += list(stream)
        text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        assert text.startswith(whole) and pieces[-1].choices[0].finish_reason == "length"
        assert server.process.wait(timeout=30) == 0
        assert server.process.stderr.read() == ""


@pytest.mark.parametrize("times", [1, 2])
def test_sigterm_waits_no_longer_than_asked(serving, times):
    """Those who still wait get an error; a second signal ends it at once, whatever the limit."""
    with serving("--rows", 1, "--drain", 1 if times == 1 else 600) as server:
        stream = start(server.client())
        for _ in range(times):
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        try:
            with pytest.raises((openai.APIError, httpx2.TransportError)) as end:
                list(stream)
            if times == 1:
                assert isinstance(end.value, openai.APIError) and end.value.code == "shutting_down"
            assert server.process.wait(timeout=30) == 0
        finally:
            server.process.kill()


def test_a_head_that_never_ends_is_not_waited_for(serving):
    """Nor is a connection without one; the time is shortened in the server's own process."""
    with serving(program=("serve_impatiently.py",)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        for sent in (b"", b"GET /health HTTP/1.1\r\nHost: loc"):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(sent)
                connection.settimeout(20)
                assert connection.recv(100) == b""
        assert httpx2.get(f"{server.url}/health").status_code == 200


def test_a_body_that_never_ends_is_not_waited_for(serving):
    """The request is answered, and its place free, though its client goes on to send."""
    with serving("--max-num-seqs", 1, "--queue", 0, program=("serve_impatiently.py",)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(head + b"Content-Length: 1000\r\n\r\n{")
            answer = HTTPResponse(connection)  # the head and the body can arrive in separate packets
            answer.begin()
            assert answer.status == 408 and b"the body: expected within 1 seconds" in answer.read()
            messages = [{"role": "user", "content": "What is red?"}]
            assert server.client().chat.completions.create(model="mini", messages=messages, max_tokens=1).choices


def test_figures(serving):
    """After known requests, known numbers, under vLLM's names."""
    with serving() as server:
        client = server.client()
        usages = [client.chat.completions.create(model="mini", messages=ASKED).usage for _ in range(2)]
        client.chat.completions.create(model="mini", messages=ASKED, n=2, max_tokens=1)
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="mini", messages=ASKED, n=-1)
        prompt = usages[0].prompt_tokens
        expected = {
            "vllm:prompt_tokens_total": 3 * prompt,
            "vllm:generation_tokens_total": sum(usage.completion_tokens for usage in usages) + 2,
            "vllm:prefix_cache_queries_total": 4 * prompt,
            "vllm:prefix_cache_hits_total": 3 * (prompt - 1),
            "vllm:prompt_tokens_cached_total": 2 * (prompt - 1),
            "vllm:num_preemptions_total": 0,
            "vllm:time_to_first_token_seconds_count": 3,
            "vllm:e2e_request_latency_seconds_count": 4,
            "vllm:request_prompt_tokens_sum": 3 * prompt,
            "vllm:request_generation_tokens_count": 4,
            "vllm:inter_token_latency_seconds_count": sum(usage.completion_tokens - 1 for usage in usages),
            "vllm:num_requests_running": 0,
            "vllm:num_requests_waiting": 0,
            "vllm:kv_cache_usage_perc": 0,
        }
        assert {name: metric(server, name, model_name="mini") for name in expected} == expected
        assert metric(server, "vllm:request_success_total", finished_reason="stop") == 2
        assert metric(server, "vllm:request_success_total", finished_reason="length") == 2
        assert metric(server, "ernie:requests_refused_total", code="invalid_value") == 1
        assert metric(server, "process_resident_memory_bytes") > 2**20
        stream = start(client)
        assert 0 < metric(server, "vllm:kv_cache_usage_perc") < 1 and metric(server, "vllm:num_requests_running") == 1
        stream.close()
