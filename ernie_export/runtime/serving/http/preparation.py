"""From a checked request to its prompt: media are fetched and decoded, text is tokenized, in threads and processes."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from ernie_export.common.errors import UserError
from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.preprocess import Prepared
from ernie_export.runtime.preprocess.chat import chat_variables
from ernie_export.runtime.serving.http.abilities import check_abilities
from ernie_export.runtime.serving.http.admission import Ticket
from ernie_export.runtime.serving.http.completion_schema import TextPrompt
from ernie_export.runtime.serving.http.errors import ApiError, from_user_error
from ernie_export.runtime.serving.http.fetch import Fetcher
from ernie_export.runtime.serving.http.media import fetch_all, media_of, runtime_messages
from ernie_export.runtime.serving.http.schema import ChatRequest
from ernie_export.runtime.serving.http.settings import Settings
from ernie_export.runtime.serving.media_pool import Cancelled, MediaPool
from ernie_export.runtime.serving.prepare import (
    Conversation,
    PreparedRequest,
    prepare_request,
    prepare_text,
    preprocess_request,
)

T = TypeVar("T")


class Preparation:
    """The threads that make prompts, and the processes that decode their media."""

    def __init__(self, model: Model, settings: Settings, fetcher: Fetcher) -> None:
        self._model = model
        self._settings = settings
        self._fetcher = fetcher
        # Requests of text alone take milliseconds and must not wait for videos: they have threads of their own.
        self._text_threads = ThreadPoolExecutor(2, "text")
        self._media_threads = ThreadPoolExecutor(settings.preprocessors, "media")
        self._pool = MediaPool(model.preprocessor.folder, settings.preprocessors, settings.media.worker_memory)
        self._running: set[threading.Event] = set()  # set where a request that is being prepared has ended

    def start(self) -> None:
        """Start the processes."""
        self._pool.start()

    def stop(self) -> None:
        """Cancel what is being prepared, and end the processes and the threads."""
        self.cancel()
        self._pool.close()
        for threads in (self._text_threads, self._media_threads):
            threads.shutdown(wait=True, cancel_futures=True)

    def cancel(self) -> None:
        """Cancel what is being prepared."""
        for ended in self._running:
            ended.set()

    def check(self, chat: ChatRequest) -> None:
        """Raise ApiError for more images and videos than one request may have, and for what the model cannot do."""
        check_most("messages", len(media_of(chat.messages)), self._settings.media.max_items, " images and videos")
        check_abilities(chat, self._model)

    async def chat(self, chat: ChatRequest, ticket: Ticket) -> PreparedRequest:
        """Return the prompt of a conversation, its media encoded. Raises ApiError."""
        settings = self._settings

        def prepare(conversation: Conversation, ended: threading.Event) -> PreparedRequest:
            return prepare_request(
                self._model,
                conversation,
                settings.media,
                ticket.began + settings.timeout,
                self._pool,
                cancelled=ended.is_set,
                max_prompt_tokens=settings.max_prompt_tokens,
            )

        return await self._in_media_thread(prepare, chat, ticket)

    async def tokens(self, chat: ChatRequest, ticket: Ticket) -> list[int]:
        """Return the token ids of the prompt of a conversation, which may be longer than the context. Raises ApiError.

        Its media are decoded, which says how many tokens they take, and not encoded.
        """
        settings = self._settings

        def tokenize(conversation: Conversation, ended: threading.Event) -> list[int]:
            prepared: Prepared = preprocess_request(
                self._model.preprocessor,
                conversation,
                settings.media,
                ticket.began + settings.timeout,
                self._pool,
                cancelled=ended.is_set,
                max_tokens=settings.max_prompt_tokens,
            )
            ids: list[int] = prepared.arrays["input_ids"][0].tolist()
            return ids

        return await self._in_media_thread(tokenize, chat, ticket)

    async def texts(self, prompts: Sequence[TextPrompt], ticket: Ticket) -> list[PreparedRequest]:
        """Return prompts of plain texts or token ids. Raises ApiError."""
        most = self._settings.max_prompt_tokens
        return await self.in_text_thread(lambda: [prepare_text(self._model, text, most) for text in prompts], ticket)

    async def in_text_thread(self, work: Callable[[], T], ticket: Ticket) -> T:
        """Return what `work` returns, in a thread for text. Raises ApiError for a UserError of it."""
        return await in_thread(self._text_threads, work, ticket)

    async def _in_media_thread(
        self, work: Callable[[Conversation, threading.Event], T], chat: ChatRequest, ticket: Ticket
    ) -> T:
        """Fetch the media of a conversation and return what `work` makes of it, in a thread. Raises ApiError.

        `work` is handed an event, which is set where the request ends before.
        """
        fetched = await fetch_all(chat.messages, self._fetcher, self._settings.max_body)
        ticket.take(size=sum(map(len, fetched.values())))
        threads = self._media_threads if media_of(chat.messages) else self._text_threads
        async with self._ending() as ended:
            return await in_thread(threads, lambda: work(_conversation(chat, fetched), ended), ticket)

    @asynccontextmanager
    async def _ending(self) -> AsyncIterator[threading.Event]:
        """Yield an event that is set once the block ends, or all are cancelled: it ends processes that still decode."""
        ended = threading.Event()
        self._running.add(ended)
        try:
            yield ended
        finally:
            ended.set()
            self._running.discard(ended)


def check_most(param: str, value: int, most: int, noun: str = "") -> None:
    """Raise ApiError 400 for a field with more than `most`."""
    if value > most:
        raise ApiError(400, f"{param}: expected at most {most}{noun}, found {value}", param, "too_large")


async def in_thread(threads: ThreadPoolExecutor, work: Callable[[], T], ticket: Ticket) -> T:
    """Return what `work` returns, in a thread. Raises ApiError for a UserError of it."""
    future = threads.submit(work)
    ticket.keep_until(future)  # a thread cannot be stopped: what it holds counts until it is done
    try:
        return await asyncio.wrap_future(future)
    except Cancelled as e:
        raise ApiError(503, "the server is shutting down", code="shutting_down") from e
    except UserError as e:
        raise from_user_error(e) from e
    finally:
        del future  # holds the exception, whose traceback leads here: the body would stay until a collection


def _conversation(chat: ChatRequest, fetched: dict[str, bytes]) -> Conversation:
    """Return the conversation of a request. Raises ApiError and UserError for malformed media or options."""
    tools = [tool.variable() for tool in chat.tools or ()] if chat.may_call else None
    return Conversation(
        messages=runtime_messages(chat.messages, fetched),
        template_variables=chat_variables(chat.thinking, tools),
        add_generation_prompt=chat.begins_answer,
        continue_final_message=bool(chat.continue_final_message),
        media_options=chat.media_options(),
    )
