"""A span for each request, as a collector receives it. Runs where the extra otel is installed."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx2
import pytest

from ernie_export.common.errors import Unavailable
from ernie_export.runtime.serving.http import tracing
from tests.runtime.server.conftest import serve

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An address, and the bodies that are sent there."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
        server.shutdown()


def test_a_request_is_a_span_of_its_callers_trace(bundle, collector):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    address, bodies = collector
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "X-Request-Id": "mine"}
    with serve(bundle, "--otlp-traces-endpoint", address, program=("serve_echo.py",)) as server:
        body = {"messages": [{"role": "user", "content": "say:red"}]}
        usage = httpx2.post(f"{server.url}/v1/chat/completions", json=body, headers=headers).json()["usage"]
        httpx2.post(f"{server.url}/v1/chat/completions", json={**body, "temprature": 1}, headers=headers)
    requests = [ExportTraceServiceRequest.FromString(data) for data in bodies]
    spans = [
        span
        for request in requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    answered, refused = spans
    assert answered.trace_id.hex() == refused.trace_id.hex() == TRACE
    values = {item.key: item.value for item in answered.attributes}
    assert values["http.response.status_code"].int_value == 200 and values["gen_ai.request.id"].string_value == "mine"
    assert values["gen_ai.usage.input_tokens"].int_value == usage["prompt_tokens"]
    values = {item.key: item.value for item in refused.attributes}
    assert values["error.type"].string_value == "unknown_parameter"


def test_without_the_library_the_extra_is_named():
    with pytest.raises(Unavailable, match=r"\[otel\]"):
        tracing.check_installed(lambda name: None)
