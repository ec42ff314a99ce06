"""The HTTP application: `create_app` returns the routes of one model."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect

from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.serving.http import errors
from ernie_export.runtime.serving.http.abilities import without_ignored
from ernie_export.runtime.serving.http.admission import Ticket
from ernie_export.runtime.serving.http.errors import ApiError, ClientGone
from ernie_export.runtime.serving.http.fetch import Fetcher
from ernie_export.runtime.serving.http.guard import Guard, read_body
from ernie_export.runtime.serving.http.parse import parse
from ernie_export.runtime.serving.http.responses import ResponseWriter
from ernie_export.runtime.serving.http.schema import ChatRequest
from ernie_export.runtime.serving.http.service import Generation, Service
from ernie_export.runtime.serving.http.settings import Settings
from ernie_export.runtime.serving.http.stream import CompleteResponse, EventStream, unless_gone

STATIC = Path(__file__).parent / "static"
BODY_SECONDS = 60.0  # longest time for a body to arrive
SEND_SECONDS = 30.0  # that a client may take to read a complete answer, even where the deadline is near
SMALL = 64 * 1024  # bytes of a body that are parsed at once: the event loop barely notices
# The page runs only its own files, shows files that its user drops on it, and cannot be framed by another page.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob: data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class PageFiles(StaticFiles):
    """The files of the page, served with the page's headers."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """Return a file with the headers."""
        response = super().file_response(*arguments, **options)
        response.headers.update(PAGE_HEADERS)
        return response


def create_app(model: Model, settings: Settings, fetcher: Fetcher | None = None) -> FastAPI:
    """Return the application of a model, which answers in a thread of its own from startup to shutdown.

    Args:
        model: The model. The caller closes it; it accepts no requests after the shutdown. Its scheduler should let
            `settings.max_requests` wait.
        settings: The settings of the server.
        fetcher: The client for URLs in requests; by default one for `settings.allow_urls`.
    """
    service = Service(model, settings, fetcher or Fetcher(settings.allow_urls, settings.fetch_seconds))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPI(title="ernie-serve", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.add_middleware(Guard, hosts=settings.hosts, keys=settings.api_keys)
    errors.install(app)
    _add_state(app, service)
    _add_models(app, settings, model.manifest.model.max_positions)
    _add_page(app)

    @app.post("/v1/chat/completions", openapi_extra=_describe_body(app))
    async def chat_completions(request: Request) -> Response:
        try:
            return await _chat(request, service)
        except ApiError as e:
            service.metrics.refused(e.code or str(e.status))
            raise

    return app


async def _chat(request: Request, service: Service) -> Response:
    settings = service.settings
    clock = asyncio.get_running_loop().time
    deadline = clock() + settings.timeout
    ticket = service.admission.admit()
    generation: Generation | None = None
    response: Response | None = None

    def end() -> None:
        if generation is not None:
            service.end(generation)
        ticket.release()

    try:
        async with asyncio.timeout_at(deadline):
            chat = without_ignored(await _read(request, service, ticket), settings.ignore_tools)
            generation = await unless_gone(request.receive, service.generate(chat, ticket))
            chat = chat.model_copy(update={"messages": []})  # frees images and videos in base64
            writer = ResponseWriter(chat, generation, settings.model_name, service.token_bytes)
            if chat.stream:
                response = EventStream(_events(generation, writer), deadline, end)
            else:
                content = await unless_gone(request.receive, _complete(generation, writer))
                response = CompleteResponse(content, max(deadline, clock() + SEND_SECONDS), end)
        return response
    except TimeoutError as e:
        raise ApiError(504, f"no answer within {settings.timeout:g} seconds", code="timeout") from e
    finally:
        if response is None:
            end()


async def _read(request: Request, service: Service, ticket: Ticket) -> ChatRequest:
    settings = service.settings
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await read_body(request, settings.max_body, ticket)
    except ClientDisconnect as e:
        raise ClientGone from e
    except TimeoutError as e:
        raise ApiError(408, f"the body: expected within {BODY_SECONDS:g} seconds", code="timeout") from e
    if len(body) <= SMALL:
        return parse(body, settings.max_text)
    return await service.parse(body)


async def _complete(generation: Generation, writer: ResponseWriter) -> bytes:
    async for index, output in generation.outputs():
        writer.take(index, output)
    return writer.completion()


async def _events(generation: Generation, writer: ResponseWriter) -> AsyncIterator[bytes]:
    for data in writer.opening():
        yield data
    async for index, output in generation.outputs():
        for data in writer.chunks(index, output):
            yield data
    for data in writer.closing():
        yield data


def _add_state(app: FastAPI, service: Service) -> None:
    """Add the routes for probes and Prometheus."""

    @app.get("/health")
    async def health() -> JSONResponse:
        """Return whether the process works; if not, it has to be restarted."""
        return JSONResponse({"status": "ok"}) if service.alive else _unavailable("the model's thread has ended")

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Return whether requests should be sent here now."""
        if service.admission.draining:
            return _unavailable("the server is shutting down")
        return JSONResponse({"status": "ready"}) if service.alive else _unavailable("the model's thread has ended")

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _unavailable(reason: str) -> JSONResponse:
    return ApiError(503, reason, code="unavailable").response()


def _add_models(app: FastAPI, settings: Settings, positions: int) -> None:
    """Add the routes that describe the model."""
    description = {
        "id": settings.model_name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "ernie-export",
        "max_model_len": positions,
    }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [description]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != settings.model_name:
            raise ApiError(404, f"the model {name[:80]!r} does not exist", "model", "model_not_found")
        return description


def _add_page(app: FastAPI) -> None:
    """Add the server's page at / and its files."""

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers=PAGE_HEADERS)

    app.mount("/static", PageFiles(directory=STATIC), name="static")


def _describe_body(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description of the body, which the route parses itself once the request is admitted.

    Schemas of its parts are added to the document of `app`, since references are relative to the document's root.
    """
    schema = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    parts = schema.pop("$defs")
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        document.setdefault("components", {}).setdefault("schemas", {}).update(parts)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation extends it
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
