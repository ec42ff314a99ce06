"""Paths of OpenAI's and vLLM's interfaces that this server does not have.

They answer 400 with a code, not 404: a gateway takes a 404 for a deployment that is gone, and sends it nothing more.
"""

from fastapi import FastAPI, Request

from ernie_export.runtime.serving.http.errors import ApiError

# First words of the paths after /v1/.
KNOWN = (
    "assistants", "audio", "batches", "classify", "containers", "conversations", "embeddings", "evals", "files",
    "fine_tuning", "images", "messages", "moderations", "pooling", "realtime", "rerank", "responses", "score",
    "threads", "uploads", "vector_stores", "videos",
)  # fmt: skip
METHODS = ["GET", "POST", "DELETE"]


def add_unsupported(app: FastAPI) -> None:
    """Add the routes to an application, after those that it has."""
    for word in KNOWN:
        app.add_api_route(f"/v1/{word}", _refuse, methods=METHODS, include_in_schema=False)
        app.add_api_route(f"/v1/{word}/{{rest:path}}", _refuse, methods=METHODS, include_in_schema=False)


async def _refuse(request: Request) -> None:
    problem = f"{request.method} {request.url.path}: this server has no such interface"
    raise ApiError(400, problem, code="unsupported_endpoint")
