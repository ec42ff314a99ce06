"""The routes about tokens, as vLLM has them: /tokenize, /detokenize and /tokenizer_info."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from ernie_export.common.json_fields import read_json
from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.preprocess.chat import chat_variables
from ernie_export.runtime.preprocess.tokenizer_settings import CONFIG_FILE
from ernie_export.runtime.serving.http.admission import Ticket
from ernie_export.runtime.serving.http.answering import read
from ernie_export.runtime.serving.http.completion_schema import Ids
from ernie_export.runtime.serving.http.errors import ApiError
from ernie_export.runtime.serving.http.media import media_of, runtime_messages
from ernie_export.runtime.serving.http.neutral_fields import drop_neutral
from ernie_export.runtime.serving.http.parse import read_document, validate
from ernie_export.runtime.serving.http.schema import MAX_ITEMS, Message, RequestPart, TemplateOptions
from ernie_export.runtime.serving.http.service import Service, check_model
from ernie_export.runtime.serving.http.stream import unless_gone
from ernie_export.runtime.serving.http.tool_schema import MAX_TOOLS, Tool

_OWN_FIELDS: tuple[str, ...] = ("add_special_tokens", "add_generation_prompt")  # here they have an effect


class TokenRequest(RequestPart):
    """A request about tokens, which may name the model."""

    model: str | None = None


Body = TypeVar("Body", bound=TokenRequest)


class TokenizeRequest(TokenRequest):
    """A text, or a conversation of text alone, to be tokenized."""

    prompt: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_ITEMS)] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False
    chat_template_kwargs: TemplateOptions | None = None


class DetokenizeRequest(TokenRequest):
    """Token ids to be made text."""

    tokens: Ids


def add_token_routes(app: FastAPI, service: Service) -> None:
    """Add the routes to an application."""
    model = service.model

    @app.post("/tokenize")
    async def tokenize(request: Request) -> JSONResponse:
        """Return the tokens of a text, or of the prompt that the chat template makes of a conversation."""
        limit = service.settings.max_prompt_tokens
        return await _compute(request, service, _parse_tokenize, partial(_tokenize, model, limit))

    @app.post("/detokenize")
    async def detokenize(request: Request) -> JSONResponse:
        """Return the text of tokens, special ones included."""
        return await _compute(request, service, _parse_detokenize, partial(_detokenize, model))

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
    request: Request, service: Service, parse: Callable[[bytearray, int], Body], work: Callable[[Body], dict[str, Any]]
) -> JSONResponse:
    """Admit and read a request, and return what `work` makes of it in a thread. Raises ApiError."""
    ticket: Ticket | None = None
    body: Body | None = None
    try:
        async with asyncio.timeout(service.settings.timeout):
            ticket = service.admission.admit()
            body = await read(request, service, lambda body: parse(body, service.settings.max_text), ticket)
            check_model(body.model, service.settings.model_name)
            return JSONResponse(await unless_gone(request.receive, service.in_text_thread(partial(work, body), ticket)))
    except ApiError as e:
        service.metrics.refused(e.code or str(e.status))
        if e.param == "messages" and getattr(body, "prompt", None) is not None:
            e.param = "prompt"
        raise
    except TimeoutError as e:
        raise ApiError(504, f"no answer within {service.settings.timeout:g} seconds", code="timeout") from e
    finally:
        if ticket is not None:
            ticket.release()


def _parse_tokenize(body: bytearray, max_text: int) -> TokenizeRequest:
    document = read_document(body, max_text)
    kept = {name: document.pop(name) for name in _OWN_FIELDS if name in document}
    request = validate(TokenizeRequest, {**drop_neutral(document), **kept})
    if (request.prompt is None) == (request.messages is None):
        raise ApiError(400, "prompt: expected it or messages, and not both", "prompt", "invalid_value")
    if media := media_of(request.messages or []):
        param = next(iter(media))
        raise ApiError(400, f"{param}: expected text alone, found an image or video", param, "invalid_value")
    return request


def _parse_detokenize(body: bytearray, max_text: int) -> DetokenizeRequest:
    return validate(DetokenizeRequest, read_document(body, max_text))


def _tokenize(model: Model, max_tokens: int, request: TokenizeRequest) -> dict[str, Any]:
    """Return the tokens. Raises UserError, ContextLengthExceeded for more than `max_tokens` among these."""
    preprocessor = model.preprocessor
    text = request.prompt
    if text is None:
        options = request.chat_template_kwargs or TemplateOptions()
        variables = chat_variables(options.thinking, [tool.variable() for tool in request.tools or ()])
        messages = runtime_messages(request.messages or [], {})
        text = preprocessor.chat.render(messages, request.add_generation_prompt, variables)
    preprocessor.check_length(text, max_tokens)
    ids = preprocessor.chat.tokenizer.encode(text, request.add_special_tokens)
    pieces = [preprocessor.chat.tokenizer.backend.id_to_token(id) for id in ids]
    return {
        "count": len(ids),
        "max_model_len": model.manifest.model.max_positions,
        "tokens": ids,
        "token_strs": pieces if request.return_token_strs else None,
    }


def _detokenize(model: Model, request: DetokenizeRequest) -> dict[str, Any]:
    backend = model.preprocessor.chat.tokenizer.backend
    unknown = next((id for id in request.tokens if backend.id_to_token(id) is None), None)
    if unknown is not None:
        raise ApiError(400, f"tokens: expected ids of the vocabulary, found {unknown}", "tokens", "invalid_value")
    return {"prompt": backend.decode(list(request.tokens), skip_special_tokens=False)}
