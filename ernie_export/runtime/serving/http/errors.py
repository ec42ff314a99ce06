"""Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ernie_export.common.errors import ContextLengthExceeded, InvalidValue, UserError, one_printable_line

log = logging.getLogger("ernie_export.server")

# OpenAI's name of the kind of error, by status; "invalid_request_error" for the other 4xx.
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request's failure as its sender is told it. `param` names the field at fault, `code` what is wrong with it."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.message = one_printable_line(message)  # it may name a field that the request made up
        super().__init__(self.message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    def content(self) -> dict[str, Any]:
        """The body."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole response."""
        return JSONResponse(self.content(), self.status, self.headers)


# What a client is sent for each type of UserError: status and code. The first type that fits decides.
_RESPONSES: tuple[tuple[type[UserError], int, str], ...] = (
    (ContextLengthExceeded, 400, "context_length_exceeded"),
    (UserError, 400, "invalid_value"),
)
# What a request calls each field of SamplingParams, and of the scheduler. Every other error is one of its messages.
_PARAMS = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
    "stop": "stop",
    "logprobs": "top_logprobs",
    "prompt and answer": "max_tokens",
}


def from_user_error(error: UserError) -> ApiError:
    """Return the response for an error of the runtime: status and code by its type, `param` by its field."""
    status, code = next((status, code) for kind, status, code in _RESPONSES if isinstance(error, kind))
    return ApiError(status, str(error), _param(error), code)


def _param(error: UserError) -> str:
    """Return the request field at fault, e.g. "messages.0.content.1" for the runtime's "messages[0].content[1]"."""
    field = error.field if isinstance(error, InvalidValue) else "messages"
    if field.startswith("messages["):
        return re.sub(r"\[(\d+)\]", r".\1", field)
    return _PARAMS.get(field, "messages")


class ClientGone(Exception):
    """The client left before its answer was whole: nobody reads a response any more."""


def internal_error(error: BaseException) -> ApiError:
    """For the client no more than that something failed; for the log, all of it."""
    log.error("a request failed", exc_info=error)
    return ApiError(500, "internal error: the server's log says more", code="internal_error")


def install(app: FastAPI) -> None:
    """Let every error of `app` take this form, the framework's own too."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return ApiError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(ClientGone)
    async def client_gone(request: Request, error: ClientGone) -> JSONResponse:
        return ApiError(499, "the client went away").response()
