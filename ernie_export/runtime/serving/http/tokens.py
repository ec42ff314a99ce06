"""The routes about tokens, as vLLM has them: /tokenize, /detokenize and /tokenizer_info."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from ernie_export.common.json_fields import read_json
from ernie_export.runtime.preprocess.tokenizer_settings import CONFIG_FILE
from ernie_export.runtime.serving.http.abilities import without_ignored
from ernie_export.runtime.serving.http.admission import Ticket
from ernie_export.runtime.serving.http.answering import read
from ernie_export.runtime.serving.http.completion_schema import Ids
from ernie_export.runtime.serving.http.errors import ApiError
from ernie_export.runtime.serving.http.neutral_fields import drop_neutral
from ernie_export.runtime.serving.http.parse import check_chat, read_document, validate
from ernie_export.runtime.serving.http.schema import ChatRequest, RequestPart
from ernie_export.runtime.serving.http.service import Service, check_model
from ernie_export.runtime.serving.http.stream import unless_gone

Body = TypeVar("Body", bound="TextTokens | ChatTokens | Detokenize")


class TokenOptions(RequestPart):
    """How tokens are written, and whether those are added that a tokenizer puts around a text.

    By default a text has these, and a conversation has what the chat template writes.
    """

    add_special_tokens: bool | None = None
    return_token_strs: bool = False


class TextTokens(TokenOptions):
    """A text to be tokenized."""

    model: str | None = None
    prompt: str


@dataclass(frozen=True)
class ChatTokens:
    """A conversation to be tokenized, as a chat completion has it: the same prompt with the same number of tokens."""

    chat: ChatRequest
    options: TokenOptions

    @property
    def model(self) -> str | None:
        """The model that is asked for."""
        return self.chat.model


class Detokenize(RequestPart):
    """Token ids to be made text."""

    model: str | None = None
    tokens: Ids


def add_token_routes(app: FastAPI, service: Service) -> None:
    """Add the routes to an application."""
    model = service.model

    @app.post("/tokenize")
    async def tokenize(request: Request) -> JSONResponse:
        """Return the tokens of a text, or of the prompt of a conversation with its images and videos."""
        return await _compute(request, service, partial(_parse_tokenize, service), partial(_tokenize, service))

    @app.post("/detokenize")
    async def detokenize(request: Request) -> JSONResponse:
        """Return the text of tokens, special ones included."""
        return await _compute(request, service, partial(_parse_detokenize, service), partial(_detokenize, service))

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        """Return the settings of the tokenizer and the chat template."""
        chat = model.preprocessor.chat
        settings = read_json(model.preprocessor.folder / CONFIG_FILE)
        return {
            **settings,
            "chat_template": chat.source,
            "vocab_size": chat.tokenizer.backend.get_vocab_size(),
            "max_model_len": model.manifest.model.max_positions,
        }


async def _compute(
    request: Request,
    service: Service,
    parse: Callable[[bytearray], Body],
    work: Callable[[Body, Ticket], Coroutine[Any, Any, dict[str, Any]]],
) -> JSONResponse:
    """Admit and read a request, and return what `work` makes of it. Raises ApiError."""
    ticket: Ticket | None = None
    try:
        async with asyncio.timeout(service.settings.timeout):
            ticket = service.admission.admit()
            body = await read(request, service, parse, ticket)
            check_model(body.model, service.settings.model_name)
            return JSONResponse(await unless_gone(request.receive, work(body, ticket)))
    except ApiError as e:
        service.metrics.refused(e.code or str(e.status))
        raise
    except TimeoutError as e:
        raise ApiError(504, f"no answer within {service.settings.timeout:g} seconds", code="timeout") from e
    finally:
        if ticket is not None:
            ticket.release()


def _parse_tokenize(service: Service, body: bytearray) -> TextTokens | ChatTokens:
    settings = service.settings
    document = {name: value for name, value in read_document(body, settings.max_text).items() if value is not None}
    if ("prompt" in document) == ("messages" in document):
        raise ApiError(400, "prompt: expected it or messages, and not both", "prompt", "invalid_value")
    own = {name: document.pop(name) for name in TokenOptions.model_fields if name in document}
    if "prompt" in document:
        return validate(TextTokens, {**drop_neutral(document), **own})
    options = validate(TokenOptions, own)
    adds = service.model.preprocessor.chat.tokenizer.backend.num_special_tokens_to_add(False)
    if options.add_special_tokens and adds:
        problem = "add_special_tokens: expected false, the chat template writes these tokens"
        raise ApiError(400, problem, "add_special_tokens", "unsupported_parameter")
    chat = without_ignored(check_chat(document, settings.max_text), settings.ignore_tools)
    return ChatTokens(chat, options)


def _parse_detokenize(service: Service, body: bytearray) -> Detokenize:
    return validate(Detokenize, read_document(body, service.settings.max_text))


async def _tokenize(service: Service, asked: TextTokens | ChatTokens, ticket: Ticket) -> dict[str, Any]:
    """Return the tokens. Raises ApiError, also for more of them than the server reads in one prompt."""
    model = service.model
    if isinstance(asked, ChatTokens):
        service.preparation.check(asked.chat)
        ids = await service.preparation.tokens(asked.chat, ticket)
        strings = asked.options.return_token_strs
    else:
        ids = await _text_tokens(service, asked, ticket)
        strings = asked.return_token_strs
    return {
        "count": len(ids),
        "max_model_len": model.manifest.model.max_positions,
        "tokens": ids,
        "token_strs": [model.preprocessor.chat.tokenizer.backend.id_to_token(id) for id in ids] if strings else None,
    }


async def _text_tokens(service: Service, asked: TextTokens, ticket: Ticket) -> list[int]:
    preprocessor = service.model.preprocessor

    def encode() -> list[int]:
        preprocessor.check_length(asked.prompt, service.settings.max_prompt_tokens)
        return preprocessor.chat.tokenizer.encode(asked.prompt, asked.add_special_tokens is not False)

    try:
        return await service.preparation.in_text_thread(encode, ticket)
    except ApiError as e:
        if e.param == "messages":  # as the runtime calls a prompt
            e.param = "prompt"
        raise


async def _detokenize(service: Service, asked: Detokenize, ticket: Ticket) -> dict[str, Any]:
    backend = service.model.preprocessor.chat.tokenizer.backend

    def decode() -> str:
        unknown = next((id for id in asked.tokens if backend.id_to_token(id) is None), None)
        if unknown is not None:
            raise ApiError(400, f"tokens: expected ids of the vocabulary, found {unknown}", "tokens", "invalid_value")
        return backend.decode(list(asked.tokens), skip_special_tokens=False)

    return {"prompt": await service.preparation.in_text_thread(decode, ticket)}
