"""From a request to its answer: admitted, read, generated, written. Every interface that generates takes this way."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from ernie_export.runtime.serving.http.admission import Ticket
from ernie_export.runtime.serving.http.completion_schema import CompletionRequest
from ernie_export.runtime.serving.http.errors import ApiError, ClientGone
from ernie_export.runtime.serving.http.events import Writer, write_events, write_whole
from ernie_export.runtime.serving.http.guard import read_body
from ernie_export.runtime.serving.http.logs import note
from ernie_export.runtime.serving.http.preparation import T
from ernie_export.runtime.serving.http.schema import ChatRequest
from ernie_export.runtime.serving.http.service import Generation, Service
from ernie_export.runtime.serving.http.stream import CompleteResponse, EventStream, unless_gone

BODY_SECONDS = 60.0  # longest time for a body to arrive
SEND_SECONDS = 30.0  # that a client may take to read a complete answer, even where the deadline is near
SMALL = 64 * 1024  # bytes of a body that are parsed at once: the event loop barely notices


class Question(Protocol):
    """A request as one of the interfaces has read it."""

    @property
    def request(self) -> ChatRequest | CompletionRequest:
        """What is asked of the model."""
        ...

    def renamed(self, error: ApiError) -> ApiError:
        """Return an error of the runtime with the field's name in the interface."""
        ...

    def writer(self, generation: Generation, service: Service) -> Writer:
        """Return what writes the answer. The question is not needed any more, nor are its images and videos."""
        ...


async def answer(request: Request, service: Service, parse: Callable[[bytearray], Question]) -> Response:
    """Return the answer to a request, whole or streamed.

    Args:
        request: The request.
        service: The model with its threads.
        parse: Reads a body. Raises ApiError.

    Raises:
        ApiError: The request is refused, or its time has passed.
        ClientGone: The client has left.
    """
    try:
        return await _answer(request, service, parse)
    except ApiError as e:
        service.metrics.refused(e.code or str(e.status))
        raise


async def _answer(request: Request, service: Service, parse: Callable[[bytearray], Question]) -> Response:
    clock = asyncio.get_running_loop().time
    deadline = clock() + service.settings.timeout
    ticket = service.admission.admit()
    generation: Generation | None = None
    response: Response | None = None

    def end() -> None:
        if generation is not None:
            service.end(generation)
            note(request.scope, **generation.counts())
        ticket.release()

    try:
        async with asyncio.timeout_at(deadline):
            question = await read(request, service, parse, ticket)
            try:
                generation = await unless_gone(request.receive, service.generate(question.request, ticket))
            except ApiError as e:
                raise question.renamed(e) from e.__cause__  # it may be the same error: its own cause would be a cycle
            writer = question.writer(generation, service)
            streamed = question.request.stream
            del question  # frees images and videos in base64
            if streamed:
                response = EventStream(write_events(generation.outputs(), writer), deadline, end)
            else:
                content = await unless_gone(request.receive, write_whole(generation.outputs(), writer))
                response = CompleteResponse(content, max(deadline, clock() + SEND_SECONDS), end)
        return response
    except TimeoutError as e:
        raise ApiError(504, f"no answer within {service.settings.timeout:g} seconds", code="timeout") from e
    finally:
        if response is None:
            end()


async def read(request: Request, service: Service, parse: Callable[[bytearray], T], ticket: Ticket) -> T:
    """Return the body of a request, parsed. Raises ApiError, and ClientGone."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await read_body(request, service.settings.max_body, ticket)
    except ClientDisconnect as e:
        raise ClientGone from e
    except TimeoutError as e:
        raise ApiError(408, f"the body: expected within {BODY_SECONDS:g} seconds", code="timeout") from e
    if len(body) <= SMALL:
        return parse(body)
    return await service.in_parse_thread(parse, body)
