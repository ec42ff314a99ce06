"""The steps of a request: check it, fetch its media, preprocess it in a thread, schedule it, and return its tokens."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from ernie_export.common.errors import UserError
from ernie_export.runtime.constraints.grammar import Grammar
from ernie_export.runtime.generation_config import GenerationDefaults
from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.preprocess.chat import chat_variables
from ernie_export.runtime.sampling_params import SamplingParams
from ernie_export.runtime.scheduler import Output, QueueFull, Request
from ernie_export.runtime.sequence import Prompt
from ernie_export.runtime.sequence import Sequence as SequenceState
from ernie_export.runtime.serving.http.abilities import check_abilities
from ernie_export.runtime.serving.http.admission import Admission, Ticket
from ernie_export.runtime.serving.http.completion_schema import CompletionRequest, TextPrompt
from ernie_export.runtime.serving.http.errors import ApiError, from_user_error, internal_error
from ernie_export.runtime.serving.http.fetch import Fetcher
from ernie_export.runtime.serving.http.listener import Listener, LongestAnswer
from ernie_export.runtime.serving.http.media import fetch_all, media_of, runtime_messages
from ernie_export.runtime.serving.http.metrics import Metrics
from ernie_export.runtime.serving.http.request_params import sampling_params
from ernie_export.runtime.serving.http.schema import ChatRequest, GenerationFields
from ernie_export.runtime.serving.http.settings import Settings
from ernie_export.runtime.serving.media_pool import Cancelled, MediaPool
from ernie_export.runtime.serving.prepare import PreparedRequest, prepare_request, prepare_text
from ernie_export.runtime.token_bytes import TokenBytes
from ernie_export.runtime.tool_calls import OPEN

T = TypeVar("T")


class Generation:
    """The choices of one request as they are generated. `close` frees those that still run."""

    def __init__(
        self, prompts: list[PreparedRequest], requests: list[Request], outputs: "asyncio.Queue[tuple[int, Output]]"
    ) -> None:
        """Start with no outputs.

        Args:
            prompts: The prompts, one in a chat.
            requests: As many for each prompt as it has choices, in the order of the prompts.
            outputs: What the scheduler makes of the requests, with their indices.
        """
        self.prompts = prompts
        self.requests = requests
        self._outputs = outputs

    def counts(self) -> dict[str, int]:
        """Return the tokens of the prompts and those generated so far."""
        return {
            "prompt_tokens": sum(len(prepared.prompt.input_ids) for prepared in self.prompts),
            "completion_tokens": sum(len(request.sequence.tokens) for request in self.requests),
        }

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts whose keys and values the KV cache held."""
        choices = len(self.requests) // len(self.prompts)
        return sum(request.sequence.reused for request in self.requests[::choices])

    async def outputs(self) -> AsyncIterator[tuple[int, Output]]:
        """Yield (choice index, output) until every choice has its finish_reason. Raises ApiError if one fails."""
        left = len(self.requests)
        while left:
            index, output = await self._outputs.get()
            if output.finish_reason == "error":
                if isinstance(output.error, UserError):  # sampling parameters that no token satisfies
                    raise from_user_error(output.error)
                raise internal_error(output.error or RuntimeError("no reason given"))
            if output.finish_reason == "cancelled":
                raise ApiError(503, "the server is shutting down", code="shutting_down")
            left -= bool(output.finish_reason)
            yield index, output

    def close(self) -> None:
        """Cancel the choices that have not ended."""
        for request in self.requests:
            request.cancel()


class Service:
    """A model with its threads: one that steps the scheduler, and some that preprocess."""

    def __init__(self, model: Model, settings: Settings, fetcher: Fetcher) -> None:
        self.model = model
        self.settings = settings
        max_num_seqs = model.scheduler.config.max_num_seqs
        self.admission = Admission(
            settings.max_requests, settings.max_waiting_bytes, settings.max_feature_bytes, max_num_seqs
        )
        self.metrics = Metrics(settings.model_name, self._running, self._waiting, self._cache_usage, model.features)
        self._live: set[Generation] = set()
        self.defaults = GenerationDefaults.choose(settings.generation_config, model.preprocessor.folder)
        self.token_bytes = TokenBytes(model.preprocessor.chat.tokenizer)
        self._fetcher = fetcher
        # One large body after another: each holds the interpreter's lock for a while, together they would for longer.
        self._parse_thread = ThreadPoolExecutor(1, "parse")
        # A form that takes long to compile keeps those behind it waiting, and no other request.
        self._compile_thread = ThreadPoolExecutor(1, "compile")
        # Requests of text alone take milliseconds and must not wait for videos: they have threads of their own.
        self._text_threads = ThreadPoolExecutor(2, "text")
        self._media_threads = ThreadPoolExecutor(settings.preprocessors, "media")
        self._pool = MediaPool(model.preprocessor.folder, settings.preprocessors, settings.media.worker_memory)
        self._preparing: set[threading.Event] = set()  # set where a request that is being prepared has ended
        self._stepper = threading.Thread(target=model.scheduler.run, name="stepper", daemon=True)

    def start(self) -> None:
        """Start the threads and the processes that decode media."""
        self._pool.start()
        self._stepper.start()
        self._compile_thread.submit(self.model.grammars.warm)

    def stop(self) -> None:
        """End what still runs, and the threads. The owner of the model closes it."""
        self._cancel_preparing()
        self._pool.close()
        self.model.scheduler.close()
        self._stepper.join()
        for threads in (self._parse_thread, self._compile_thread, self._text_threads, self._media_threads):
            threads.shutdown(wait=True, cancel_futures=True)

    def end(self, generation: Generation) -> None:
        """Free what a generation still holds, however it ended."""
        generation.close()
        self._live.discard(generation)

    def abandon(self) -> None:
        """Cancel all that runs; its clients are sent an error."""
        self._cancel_preparing()
        for generation in self._live:
            generation.close()

    def _cancel_preparing(self) -> None:
        for ended in self._preparing:
            ended.set()

    @property
    def alive(self) -> bool:
        """Whether the thread that steps the scheduler runs."""
        return self._stepper.is_alive()

    async def in_parse_thread(self, parse: Callable[[bytearray], T], body: bytearray) -> T:
        """Read a large body in the thread for these. Raises what `parse` raises."""
        return await asyncio.get_running_loop().run_in_executor(self._parse_thread, parse, body)

    async def generate(self, request: ChatRequest | CompletionRequest, ticket: Ticket) -> Generation:
        """Check, prepare and queue a request. Raises ApiError."""
        self._check(request)
        params = [self._params(request, index) for index in range(request.n or 1)]
        if isinstance(request, ChatRequest):
            check_abilities(request, self.model)
        ticket.take(choices=len(params) * (1 if isinstance(request, ChatRequest) else len(request.prompts)))
        grammar = await self._compile(params[0], ticket)
        if isinstance(request, ChatRequest):
            prompts = [await self._prepare_chat(request, ticket)]
        else:
            prompts = await self.in_text_thread(partial(self._prepare_texts, request.prompts), ticket)
        ticket.drop_bytes()
        ticket.take(feature_size=sum(prepared.prompt.features.nbytes for prepared in prompts))
        begin = partial(self.model.begin, grammar=grammar, split_thoughts=isinstance(request, ChatRequest))
        return self._submit(prompts, params, begin, ticket)

    async def _compile(self, params: SamplingParams, ticket: Ticket) -> Grammar | None:
        """Return the grammar of the answers' form, None for free text. Raises ApiError for one that cannot be met."""
        if params.structured_outputs is None:
            try:
                return self.model.grammar(params)
            except UserError as e:
                raise from_user_error(e) from e
        return await self._in_thread(self._compile_thread, partial(self.model.grammar, params), ticket)

    async def _prepare_chat(self, chat: ChatRequest, ticket: Ticket) -> PreparedRequest:
        """Fetch the media of a conversation and prepare its prompt."""
        fetched = await fetch_all(chat.messages, self._fetcher, self.settings.max_body)
        ticket.take(size=sum(map(len, fetched.values())))
        ended = threading.Event()
        prepare = partial(self._prepare, chat, fetched, ticket.began + self.settings.timeout, ended)
        self._preparing.add(ended)
        try:
            threads = self._media_threads if media_of(chat.messages) else self._text_threads
            return await self._in_thread(threads, prepare, ticket)
        finally:
            ended.set()  # ends the processes that still decode for it
            self._preparing.discard(ended)

    def _prepare_texts(self, prompts: Sequence[TextPrompt]) -> list[PreparedRequest]:
        """Tokenize prompts of text, in a thread. Raises UserError."""
        return [prepare_text(self.model, prompt, self.settings.max_prompt_tokens) for prompt in prompts]

    def _submit(
        self,
        prompts: list[PreparedRequest],
        params: list[SamplingParams],
        begin: Callable[[Prompt, SamplingParams], SequenceState],
        ticket: Ticket,
    ) -> Generation:
        """Queue every choice: the first prefills the prompt, the others reuse its keys and values."""
        loop = asyncio.get_running_loop()
        outputs: asyncio.Queue[tuple[int, Output]] = asyncio.Queue()
        requests: list[Request] = []
        generation = Generation(prompts, requests, outputs)
        self._live.add(generation)
        try:
            for prepared in prompts:
                longest = LongestAnswer(len(params), self.metrics)
                for choice in params:
                    with self.model.scheduler.reserve() as reservation:
                        sequence = begin(prepared.prompt, choice)
                        listener = Listener(
                            index=len(requests),
                            sequence=sequence,
                            loop=loop,
                            outputs=outputs,
                            metrics=self.metrics,
                            began=ticket.began,
                            longest=longest,
                        )
                        requests.append(reservation.submit(sequence, listener))
        except BaseException as e:
            self.end(generation)
            if isinstance(e, QueueFull):
                raise self.admission.full() from e
            if isinstance(e, UserError):
                raise from_user_error(e) from e
            raise
        for prepared in prompts:
            self.metrics.prompt_tokens.inc(len(prepared.prompt.input_ids))
            self.metrics.prompt_length.observe(len(prepared.prompt.input_ids))
        return generation

    def _check(self, request: ChatRequest | CompletionRequest) -> None:
        settings = self.settings
        check_model(request.model, settings.model_name)
        most_choices = min(settings.max_choices, settings.max_requests)
        limits = [("n", request.n or 1, most_choices, "")]
        if isinstance(request, ChatRequest):
            media = len(media_of(request.messages))
            limits.append(("messages", media, settings.media.max_items, " images and videos"))
        else:
            limits.append(("prompt", (request.n or 1) * len(request.prompts), most_choices, " prompts, times n"))
        for param, value, maximum, noun in limits:
            if value > maximum:
                problem = f"{param}: expected at most {maximum}{noun}, found {value}"
                raise ApiError(400, problem, param, "too_large")

    def _params(self, chat: GenerationFields, index: int) -> SamplingParams:
        """Return the sampling parameters of choice `index`. Its seed is `seed + index`: choices differ, yet repeat."""
        try:
            tags_are_tokens = OPEN in self.model.answers.shown.values()
            return sampling_params(chat, index, self.defaults, self._most_tokens(chat), tags_are_tokens)
        except UserError as e:
            raise from_user_error(e) from e

    def _most_tokens(self, chat: GenerationFields) -> int:
        """Return the most tokens of an answer: what is asked for, within the server's limits, as in vLLM.

        Raises ApiError where more than that are asked for at least.
        """
        defaults = self.defaults
        asked = chat.most_tokens
        if asked is None:
            asked = defaults.max_new_tokens or self._default_tokens(chat)
        if (chat.min_tokens or 0) > asked:
            problem = f"min_tokens: expected at most max_tokens ({asked}), found {chat.min_tokens}"
            raise ApiError(400, problem, "min_tokens", "invalid_value")
        most = min(asked, self.settings.max_new_tokens)
        return min(most, defaults.max_new_tokens) if defaults.is_limit and defaults.max_new_tokens else most

    def _default_tokens(self, request: GenerationFields) -> int:
        """Return the most tokens of an answer where nothing says so: as many as there may be, where the model thinks.

        An answer that is cut within its thoughts says nothing.
        """
        thinking = request.thinking if isinstance(request, ChatRequest) else False
        thinks = self.model.preprocessor.chat.thinks(thinking)
        return self.settings.max_new_tokens if thinks else self.settings.default_new_tokens

    def _prepare(
        self, chat: ChatRequest, fetched: dict[str, bytes], deadline: float, ended: threading.Event
    ) -> PreparedRequest:
        """Decode, tokenize and encode, in a thread. Raises ApiError, UserError, Cancelled."""
        tools = [tool.variable() for tool in chat.tools or ()] if chat.may_call else None
        return prepare_request(
            self.model,
            runtime_messages(chat.messages, fetched),
            self.settings.media,
            deadline,
            self._pool,
            cancelled=ended.is_set,
            max_prompt_tokens=self.settings.max_prompt_tokens,
            template_variables=chat_variables(chat.thinking, tools),
            add_generation_prompt=chat.begins_answer,
            continue_final_message=bool(chat.continue_final_message),
            media_options=chat.media_options(),
        )

    async def in_text_thread(self, work: Callable[[], T], ticket: Ticket) -> T:
        """Return what `work` returns, in a thread for text. Raises ApiError for a UserError of it."""
        return await self._in_thread(self._text_threads, work, ticket)

    async def _in_thread(self, threads: ThreadPoolExecutor, work: Callable[[], T], ticket: Ticket) -> T:
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

    def _running(self) -> float:
        return self.model.scheduler.running

    def _waiting(self) -> float:
        return max(self.admission.count - self.model.scheduler.running, 0)

    def _cache_usage(self) -> float:
        return self.model.scheduler.cache_usage


def check_model(asked: str | None, served: str) -> None:
    """Raise ApiError 404 for a request of another model than the one served; None asks for none."""
    if asked not in (None, served):
        problem = f"the model {asked[:80]!r} does not exist; this server has {served!r}"
        raise ApiError(404, problem, "model", "model_not_found")
