"""The steps of a request: check it, fetch its media, preprocess it in a thread, schedule it, and return its tokens."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ernie_export.common.errors import UserError
from ernie_export.runtime.constraints.grammar import Grammar
from ernie_export.runtime.generation_config import GenerationDefaults
from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.sampling_params import SamplingParams
from ernie_export.runtime.scheduler import Output, QueueFull, Request
from ernie_export.runtime.sequence import Prompt
from ernie_export.runtime.sequence import Sequence as SequenceState
from ernie_export.runtime.serving.http.admission import Admission, Ticket
from ernie_export.runtime.serving.http.completion_schema import CompletionRequest
from ernie_export.runtime.serving.http.errors import ApiError, from_user_error, internal_error
from ernie_export.runtime.serving.http.fetch import Fetcher
from ernie_export.runtime.serving.http.listener import Listener, LongestAnswer
from ernie_export.runtime.serving.http.metrics import CacheSize, Metrics
from ernie_export.runtime.serving.http.preparation import Preparation, T, check_most, in_thread
from ernie_export.runtime.serving.http.request_params import sampling_params
from ernie_export.runtime.serving.http.schema import ChatRequest, GenerationFields
from ernie_export.runtime.serving.http.settings import Settings
from ernie_export.runtime.serving.prepare import PreparedRequest
from ernie_export.runtime.token_bytes import TokenBytes
from ernie_export.runtime.tool_calls import OPEN


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
        self.metrics = Metrics(
            settings.model_name,
            running=self._running,
            waiting=self._waiting,
            cache_usage=self._cache_usage,
            features=model.features,
            cache=_cache_size(model),
        )
        self._live: set[Generation] = set()
        self.defaults = GenerationDefaults.choose(settings.generation_config, model.preprocessor.folder)
        self.token_bytes = TokenBytes(model.preprocessor.chat.tokenizer)
        self.tags_are_tokens = model.preprocessor.chat.tokenizer.is_added(OPEN)
        self.preparation = Preparation(model, settings, fetcher)
        # One large body after another: each holds the interpreter's lock for a while, together they would for longer.
        self._parse_thread = ThreadPoolExecutor(1, "parse")
        # A form that takes long to compile keeps those behind it waiting, and no other request.
        self._compile_thread = ThreadPoolExecutor(1, "compile")
        self._stepper = threading.Thread(target=model.scheduler.run, name="stepper", daemon=True)

    def start(self) -> None:
        """Start the threads and the processes that decode media."""
        self.preparation.start()
        self._stepper.start()
        self._compile_thread.submit(self.model.grammars.warm)

    def stop(self) -> None:
        """End what still runs, and the threads. The owner of the model closes it."""
        self.preparation.cancel()
        self.model.scheduler.close()
        self._stepper.join()
        self.preparation.stop()
        for threads in (self._parse_thread, self._compile_thread):
            threads.shutdown(wait=True, cancel_futures=True)

    def end(self, generation: Generation) -> None:
        """Free what a generation still holds, however it ended."""
        generation.close()
        self._live.discard(generation)

    def abandon(self) -> None:
        """Cancel all that runs; its clients are sent an error."""
        self.preparation.cancel()
        for generation in self._live:
            generation.close()

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
        ticket.take(choices=len(params) * (1 if isinstance(request, ChatRequest) else len(request.prompts)))
        grammar = await self._compile(params[0], ticket)
        if isinstance(request, ChatRequest):
            prompts = [await self.preparation.chat(request, ticket)]
        else:
            prompts = await self.preparation.texts(request.prompts, ticket)
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
        return await in_thread(self._compile_thread, partial(self.model.grammar, params), ticket)

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
                for number, choice in enumerate(params):
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
                            leads=number == 0,
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
        check_most("n", request.n or 1, most_choices)
        if isinstance(request, ChatRequest):
            self.preparation.check(request)
        else:
            check_most("prompt", (request.n or 1) * len(request.prompts), most_choices, " prompts, times n")

    def _params(self, chat: GenerationFields, index: int) -> SamplingParams:
        """Return the sampling parameters of choice `index`. Its seed is `seed + index`: choices differ, yet repeat."""
        try:
            return sampling_params(chat, index, self.defaults, self._most_tokens(chat), self.tags_are_tokens)
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

    def _running(self) -> float:
        return self.model.scheduler.running

    def _waiting(self) -> float:
        return max(self.admission.count - self.model.scheduler.running, 0)

    def _cache_usage(self) -> float:
        return self.model.scheduler.cache_usage


def _cache_size(model: Model) -> CacheSize:
    config = model.scheduler.config
    return CacheSize(
        tokens=model.scheduler.max_cached_tokens,
        max_model_len=model.manifest.model.max_positions,
        bytes=config.kv_cache_bytes,
        prefix_caching=config.enable_prefix_caching,
    )


def check_model(asked: str | None, served: str) -> None:
    """Raise ApiError 404 for a request of another model than the one served; None asks for none."""
    if asked not in (None, served):
        problem = f"the model {asked[:80]!r} does not exist; this server has {served!r}"
        raise ApiError(404, problem, "model", "model_not_found")
