"""A span for each request, sent by OpenTelemetry's library (the extra `otel`) to a collector.

A request's `traceparent` makes its span part of the caller's trace.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ernie_export.common.errors import Unavailable
from ernie_export.runtime.serving.http.logs import MAX_PATH, NOTES

EXPORT_SECONDS = 3  # that the collector may take; spans that it does not take are lost
# What the access log notes, by the names of OpenTelemetry's conventions for generative models.
_ATTRIBUTES = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "code": "error.type",
    "param": "ernie.error.param",
}


def check_installed(find: Callable[[str], object] = find_spec) -> None:
    """Raise Unavailable where `find` finds no exporter of the library."""
    try:
        found = find("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:  # not even the packages that it is in
        found = None
    if found is None:
        raise Unavailable("--otlp-traces-endpoint needs the extra 'otel': pip install .[otel]")


class Tracer:
    """OpenTelemetry's tracer, with the thread that sends its spans."""

    def __init__(self, endpoint: str, model_name: str) -> None:
        """Start. `endpoint`: the collector's address for OTLP over HTTP, such as http://localhost:4318/v1/traces."""
        check_installed()
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self.model_name = model_name
        self._provider = TracerProvider(resource=Resource.create({"service.name": "ernie-serve"}))
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self._provider.get_tracer("ernie_export")

    def close(self) -> None:
        """Send what is left, and end the thread."""
        self._provider.shutdown()


class Traces:
    """Middleware that makes a span of each request."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on within a span, as ASGI calls it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, Status, StatusCode

        notes: dict[str, Any] = scope.setdefault(NOTES, {})
        path = scope["path"][:MAX_PATH]
        context = extract(dict(Headers(scope=scope)))
        with self._tracer.tracer.start_as_current_span(
            f"{scope['method']} {path}", context=context, kind=SpanKind.SERVER
        ) as span:
            span.set_attribute("http.request.method", scope["method"])
            span.set_attribute("url.path", path)
            span.set_attribute("gen_ai.response.model", self._tracer.model_name)

            async def send_and_note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                    ids = [value for name, value in message["headers"] if name == b"x-request-id"]
                    span.set_attribute("gen_ai.request.id", ids[0].decode("latin-1") if ids else "")
                await send(message)

            try:
                await self._app(scope, receive, send_and_note)
            finally:
                for name, attribute in _ATTRIBUTES.items():
                    if notes.get(name) is not None:
                        span.set_attribute(attribute, notes[name])
