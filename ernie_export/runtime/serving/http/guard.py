"""Before any route: the Host header, the API key and the request's id; and reading a body of limited size."""

import hmac
import re
import uuid
from pathlib import Path

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ernie_export.common.errors import InvalidFile
from ernie_export.runtime.serving.http.admission import Ticket
from ernie_export.runtime.serving.http.errors import ApiError
from ernie_export.runtime.serving.http.logs import REQUEST_ID, note

# Paths that need no key: probes, the page (which asks for the key), the description of the interface.
OPEN = ("", "/", "/health", "/ready", "/ping", "/openapi.json")
OPEN_FOLDER = "/static/"
MIN_KEY_LENGTH = 16  # characters; shorter keys can be guessed
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::\d*)?")


def read_keys(path: Path) -> tuple[str, ...]:
    """Return the API keys in a file, one a line. Raises InvalidFile for none, or one that can be guessed."""
    try:
        keys = tuple(line.strip() for line in path.read_text(encoding="ascii").splitlines() if line.strip())
    except OSError as e:
        raise InvalidFile(path, "a file of keys", e.strerror) from e
    except ValueError as e:
        raise InvalidFile(path, "keys in ASCII", "other characters") from e
    if not keys:
        raise InvalidFile(path, "at least one key", "none")
    if any(len(key) < MIN_KEY_LENGTH or not key.isprintable() or " " in key for key in keys):
        raise InvalidFile(path, f"keys of at least {MIN_KEY_LENGTH} characters without spaces", "another one")
    return keys


class Guard:
    """Middleware that refuses requests with a wrong Host header or without an API key, and gives every response an id.

    A foreign web page may resolve its own name to this machine's address (DNS rebinding) and is then, for a browser,
    the same site as this server. Only the Host header shows it.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] | None, keys: tuple[str, ...]) -> None:
        """Wrap an application.

        Args:
            app: The application that answers requests which pass.
            hosts: Names that the Host header may have, without a port; None for any.
            keys: API keys of which a request must bring one; with none, no key is needed.
        """
        self._app = app
        self._hosts = hosts
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with an error, or pass the request on, as ASGI calls it."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            request_id = _request_id(headers.get("x-request-id", ""))
            REQUEST_ID.set(request_id)
            send = _with_id(send, request_id)
            try:
                _check_length(headers)
                self._check_host(headers)
                path = scope["path"].removeprefix(scope.get("root_path", ""))
                if self._keys and path not in OPEN and not path.startswith(OPEN_FOLDER):
                    self._check_key(headers)
            except ApiError as e:
                note(scope, code=e.code, param=e.param)
                await e.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        if self._hosts is None:
            return
        host = _HOST.fullmatch(headers.get("host", ""))
        if host is None or host[1].lower() not in self._hosts:
            found = repr(headers.get("host", "")[:80])
            problem = f"the Host header: expected one of this server's hosts, found {found} (--allowed-host adds one)"
            raise ApiError(403, problem, code="host_not_allowed")

    def _check_key(self, headers: Headers) -> None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip().encode() if scheme.lower() == "bearer" else b""
        # Every key is compared, in a time that depends only on its length.
        if not any([hmac.compare_digest(key, known) for known in self._keys]):
            raise ApiError(
                401, "expected a valid API key as a Bearer token", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip


def _request_id(given: str) -> str:
    """Return a request's own id where it is one printable word, or a new one."""
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _with_id(send: Send, request_id: str) -> Send:
    """Return `send` with the header X-Request-Id."""

    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
        await send(message)

    return send_with_id


def _check_length(headers: Headers) -> None:
    """Raise ApiError 400 for two lengths of one body: a proxy may have used the other one (RFC 9112, 6.1)."""
    if "content-length" in headers and "transfer-encoding" in headers:
        problem = "expected Content-Length or Transfer-Encoding, found both"
        raise ApiError(400, problem, code="invalid_request", headers={"Connection": "close"})


async def read_body(request: Request, limit: int, ticket: Ticket) -> bytearray:
    """Return the body of a request. A web page may post text or forms to any server, but JSON only with its consent.

    Args:
        request: The request.
        limit: Most bytes of the body.
        ticket: The request's ticket, which counts the bytes as they arrive.

    Raises:
        ApiError: 413 for a larger body, 415 for one that is not declared as JSON, 429 if too many bytes are held.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"content-type: expected application/json, found {kind[:80] or 'none'}")
    declared = request.headers.get("content-length", "0")
    body = bytearray()
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    async for piece in request.stream():
        ticket.take(size=len(piece))
        body += piece
        if len(body) > limit:
            raise _too_large(limit)
    return body


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body: expected at most {limit} bytes, found more", code="body_too_large")
