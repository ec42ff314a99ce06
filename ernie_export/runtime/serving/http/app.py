"""The HTTP application: `create_app` returns the routes of one model."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from ernie_export.common.version import __version__
from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.serving.http import errors
from ernie_export.runtime.serving.http.answering import answer
from ernie_export.runtime.serving.http.completion_schema import CompletionRequest
from ernie_export.runtime.serving.http.errors import ApiError
from ernie_export.runtime.serving.http.fetch import Fetcher
from ernie_export.runtime.serving.http.guard import Guard
from ernie_export.runtime.serving.http.logs import AccessLog
from ernie_export.runtime.serving.http.paths import Paths
from ernie_export.runtime.serving.http.questions import ChatQuestion, CompletionQuestion, ResponsesQuestion
from ernie_export.runtime.serving.http.schema import ChatRequest
from ernie_export.runtime.serving.http.service import Service
from ernie_export.runtime.serving.http.settings import Settings
from ernie_export.runtime.serving.http.tokens import add_token_routes
from ernie_export.runtime.serving.http.tracing import Tracer, Traces
from ernie_export.runtime.serving.http.unsupported import add_unsupported

# The schema in full is OpenAI's; `responses_input` says which part of it is taken.
RESPONSES_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"type": "object", "required": ["input"]}}},
}
STATIC = Path(__file__).parent / "static"
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

    tracer = Tracer(settings.otlp_endpoint, settings.model_name) if settings.otlp_endpoint else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)
        if tracer is not None:
            await asyncio.to_thread(tracer.close)

    app = FastAPI(title="ernie-serve", lifespan=lifespan, docs_url=None, redoc_url=None, root_path=settings.root_path)
    app.state.service = service
    app.add_middleware(Guard, hosts=settings.hosts, keys=settings.api_keys)
    app.add_middleware(Paths, root_path=settings.root_path)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    if settings.access_log:
        app.add_middleware(AccessLog)
    if tracer is not None:
        app.add_middleware(Traces, tracer=tracer)
    errors.install(app)
    _add_state(app, service)
    _add_models(app, settings, model.manifest.model.max_positions)
    _add_page(app)
    _add_questions(app, service)
    add_token_routes(app, service)
    add_unsupported(app)
    return app


def _add_questions(app: FastAPI, service: Service) -> None:
    """Add the routes that generate."""
    settings = service.settings
    bodies = OpenApiBodies(app)

    @app.post("/v1/chat/completions", openapi_extra=bodies.of(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        return await answer(request, service, partial(ChatQuestion.parse, settings))

    @app.post("/v1/responses", openapi_extra={"requestBody": RESPONSES_BODY})
    async def responses(request: Request) -> Response:
        return await answer(request, service, partial(ResponsesQuestion.parse, settings))

    @app.post("/v1/completions", openapi_extra=bodies.of(CompletionRequest))
    async def completions(request: Request) -> Response:
        return await answer(request, service, partial(CompletionQuestion.parse, settings))


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

    @app.get("/ping", response_class=Response)
    @app.post("/ping", response_class=Response, include_in_schema=False)
    async def ping() -> Response:
        """Return 200 while the process works, as SageMaker asks."""
        return Response() if service.alive else _unavailable("the model's thread has ended")

    @app.get("/version")
    async def version() -> dict[str, str]:
        """Return the version of this package."""
        return {"version": __version__}

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


class OpenApiBodies:
    """OpenAPI descriptions of bodies, which routes parse themselves once a request is admitted."""

    def __init__(self, app: FastAPI) -> None:
        """Extend the document of `app` with the schemas of parts: references are relative to the document's root."""
        self._parts: dict[str, Any] = {}
        self._describe = app.openapi
        app.openapi = self._document  # type: ignore[method-assign]  # as FastAPI's documentation extends it

    def of(self, body: type[BaseModel]) -> dict[str, Any]:
        """Return the description of a body."""
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        self._parts |= schema.pop("$defs", {})
        return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}

    def _document(self) -> dict[str, Any]:
        document = self._describe()
        document.setdefault("components", {}).setdefault("schemas", {}).update(self._parts)
        return document
