"""Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

import logging
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ernie_export.common.errors import (
    ContextLengthExceeded,
    InvalidFile,
    InvalidValue,
    Unavailable,
    UserError,
    one_printable_line,
)
from ernie_export.runtime.sampling_params import SamplingParams
from ernie_export.runtime.serving.http.logs import note

log = logging.getLogger("ernie_export.server")

# OpenAI's name of the kind of error, by status; "invalid_request_error" for the other 4xx.
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An error response in OpenAI's form.

    Attributes:
        status: The HTTP status.
        message: What is wrong, as one printable line.
        param: The field at fault; None if there is none.
        code: What is wrong, as a word for programs.
        headers: Further headers of the response.
    """

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
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def content(self) -> dict[str, Any]:
        """Return the body."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the response."""
        return JSONResponse(self.content(), self.status, self.headers)


# The request's names of fields of SamplingParams and of the scheduler that have others there.
_PARAMS = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "logprobs": "top_logprobs",
    "prompt and answer": "max_tokens",
}
_SAME = {
    "continue_final_message", "media_io_kwargs", "mm_processor_kwargs", "response_format", "tool_choice",
    *(field.name for field in fields(SamplingParams)),
}  # fmt: skip


def from_user_error(error: UserError) -> ApiError:
    """Return the response for an error of the runtime: status and code by its type, `param` by its field.

    What is wrong with the bundle or the machine is for the log, which names files.
    """
    if isinstance(error, Unavailable):
        log.error("a request failed", exc_info=error)
        return ApiError(503, "too little memory, or the device failed: the server's log says more", code="unavailable")
    if isinstance(error, InvalidFile):
        return internal_error(error)
    code = "context_length_exceeded" if isinstance(error, ContextLengthExceeded) else "invalid_value"
    return ApiError(400, str(error), _param(error), code)


def _param(error: UserError) -> str:
    """Return the request field at fault, e.g. "messages.0.content.1" for the runtime's "messages[0].content[1]"."""
    field = error.field if isinstance(error, InvalidValue) else "messages"
    if field.startswith("messages["):
        return re.sub(r"\[(\d+)\]", r".\1", field)
    name = field.split(".")[0]
    return _PARAMS.get(name, field if name in _SAME else "messages")


class ClientGone(Exception):
    """A client that left before its answer was complete: nobody reads a response any more."""


def internal_error(error: BaseException) -> ApiError:
    """Log an error in full and return a response that says only that something failed."""
    log.error("a request failed", exc_info=error)
    return ApiError(500, "internal error: the server's log says more", code="internal_error")


def install(app: FastAPI) -> None:
    """Make every error of `app`, the framework's included, a response in this form."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        note(request.scope, code=error.code, param=error.param)
        return error.response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if request.method == "OPTIONS" and error.status_code == 405:  # a balancer's probe; no other origin is allowed
            return Response(status_code=204, headers=error.headers)
        message = f"{request.method} {request.url.path}: {error.detail}"
        return ApiError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(ClientGone)
    async def client_gone(request: Request, error: ClientGone) -> JSONResponse:
        return ApiError(499, "the client went away").response()
