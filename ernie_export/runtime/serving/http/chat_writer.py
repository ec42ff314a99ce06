"""Write answers as OpenAI's chat.completion, or as its chunks when streamed."""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from ernie_export.runtime.scheduler import Output
from ernie_export.runtime.serving.http.answer import ChoiceReader, Delta
from ernie_export.runtime.serving.http.events import DONE, Json, dump, event
from ernie_export.runtime.serving.http.schema import ChatRequest
from ernie_export.runtime.serving.http.service import Generation
from ernie_export.runtime.serving.http.token_logprobs import prompt_logprobs, token_logprobs
from ernie_export.runtime.token_bytes import TokenBytes
from ernie_export.runtime.tool_calls import ToolCall


@dataclass(frozen=True)
class Beginning:
    """What an answer begins with, before its first token.

    Attributes:
        role: Its role.
        text: The text of the message that it repeats; empty for none.
    """

    role: str = "assistant"
    text: str = ""


class ChatWriter:
    """The writer of one response, as a whole (`take`, `completion`) or as chunks (`opening`, `chunks`, `closing`)."""

    def __init__(
        self,
        chat: ChatRequest,
        generation: Generation,
        model_name: str,
        token_bytes: TokenBytes,
        beginning: Beginning = Beginning(),
    ) -> None:
        """Write the answers to `chat`, which needs no messages, as far as `generation` has them."""
        self._chat = chat
        self._beginning = beginning
        self._generation = generation
        self._token_bytes = token_bytes
        self._shared = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model_name}
        self._choices = [_Choice(reader_of(chat)) for _ in generation.requests]

    def take(self, index: int, output: Output) -> None:
        """Keep an output of a choice for `completion`."""
        choice = self._choices[index]
        choice.take(output)
        choice.logprobs += map(dump, token_logprobs(output, self._token_bytes))

    def completion(self) -> bytes:
        """Return the complete answer as JSON."""
        head = dump({**self._shared, "object": "chat.completion"})
        choices = b",".join(map(self._choice, range(len(self._choices))))
        count = self._chat.prompt_logprobs
        scores = b""
        if count is not None:
            entries = prompt_logprobs(self._generation.requests[0].sequence, count, self._token_bytes)
            scores = b',"prompt_logprobs":[%b]' % b",".join(map(dump, entries))
        return b'%b,"choices":[%b],"usage":%b%b}' % (head[:-1], choices, dump(self.usage()), scores)

    def _choice(self, index: int) -> bytes:
        """Return a choice of a complete answer as JSON."""
        choice = self._choices[index]
        logprobs = b"null"
        if self._chat.logprobs:
            logprobs = b'{"content":[%b],"refusal":null}' % b",".join(choice.logprobs)
        return b'{"index":%d,"message":%b,"logprobs":%b,"finish_reason":%b,"stop_reason":%b}' % (
            index,
            dump(choice.message(self._beginning)),
            logprobs,
            dump(choice.finish_reason),
            dump(choice.stop_reason),
        )

    def opening(self) -> Iterator[bytes]:
        """Yield a first chunk for each choice."""
        for index in range(len(self._generation.requests)):
            yield self._chunk(index, {"role": self._beginning.role, "content": self._beginning.text})

    def chunks(self, index: int, output: Output) -> Iterator[bytes]:
        """Yield the chunks that an output adds to its choice, perhaps none."""
        delta = self._choices[index].reader.read(output)
        logprobs = token_logprobs(output, self._token_bytes)
        if delta.reasoning:
            yield self._chunk(index, _reasoning(delta.reasoning), logprobs)
            logprobs = []
        if delta.text or logprobs:
            yield self._chunk(index, {"content": delta.text}, logprobs)
        for call in delta.calls:
            yield from self._call_chunks(index, call)
        if delta.finish_reason:
            yield self._chunk(index, {}, reason=delta.finish_reason, stop_reason=delta.stop_reason)

    def _call_chunks(self, index: int, call: ToolCall) -> Iterator[bytes]:
        """Yield a call as OpenAI streams it: its name, then its arguments."""
        choice = self._choices[index]
        number = choice.streamed_calls
        choice.streamed_calls += 1
        named = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        yield self._chunk(index, {"tool_calls": [{"index": number, **named}]})
        yield self._chunk(index, {"tool_calls": [{"index": number, "function": {"arguments": call.arguments}}]})

    def closing(self) -> Iterator[bytes]:
        """Yield the usage if the request asks for it, and the end of the stream."""
        if self._chat.stream_options and self._chat.stream_options.include_usage:
            yield event({**self._shared, "object": "chat.completion.chunk", "choices": [], "usage": self.usage()})
        yield DONE

    def usage(self) -> Json:
        """Return the token counts so far."""
        return usage(self._generation)

    def _chunk(
        self,
        index: int,
        delta: Json,
        logprobs: list[Json] | None = None,
        reason: str | None = None,
        stop_reason: str | int | None = None,
    ) -> bytes:
        choice: Json = {
            "index": index,
            "delta": delta,
            "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
            "finish_reason": reason,
        }
        if reason:
            choice["stop_reason"] = stop_reason
        content: Json = {**self._shared, "object": "chat.completion.chunk", "choices": [choice]}
        options = self._chat.stream_options
        if options and options.continuous_usage_stats:
            content["usage"] = self.usage()
        elif options and options.include_usage:
            content["usage"] = None
        return event(content)


def usage(generation: Generation) -> Json:
    """Return the token counts so far. `media` has the grid (t, h, w) in patches and the tokens of each medium."""
    sequences = [request.sequence for request in generation.requests]
    prompt_tokens = sum(len(prepared.prompt.input_ids) for prepared in generation.prompts)
    completion_tokens = sum(len(sequence.tokens) for sequence in sequences)
    media = [
        {"type": item.kind, "grid": item.grid, "tokens": item.tokens.stop - item.tokens.start}
        for prepared in generation.prompts
        for item in prepared.media
    ]
    thoughts = sum(sequence.text.reasoning_tokens for sequence in sequences)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": generation.cached_tokens, "media": media},
        "completion_tokens_details": {"reasoning_tokens": thoughts},
    }


class _Choice:
    """One choice of a complete answer."""

    def __init__(self, reader: ChoiceReader) -> None:
        self.reader = reader
        self.finish_reason = ""
        self.stop_reason: str | int | None = None
        self.streamed_calls = 0
        # Each token's as JSON at once: with many choices and alternatives, objects would take hundreds of megabytes,
        # and writing them at the end would take seconds, in which the event loop serves nobody.
        self.logprobs: list[bytes] = []
        self._deltas: list[Delta] = []

    def take(self, output: Output) -> None:
        """Keep what an output adds."""
        delta = self.reader.read(output)
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason
        if delta.text or delta.reasoning or delta.calls:
            self._deltas.append(delta)

    def message(self, beginning: Beginning) -> Json:
        """Return the message. Its content is null where there are thoughts or calls alone."""
        text = beginning.text + "".join(delta.text for delta in self._deltas)
        reasoning = "".join(delta.reasoning for delta in self._deltas)
        calls = [call.message() for delta in self._deltas for call in delta.calls]
        message: Json = {"role": beginning.role, "content": text, "refusal": None}
        if not text and (reasoning or calls):
            message["content"] = None
        if reasoning:
            message |= _reasoning(reasoning)
        if calls:
            message["tool_calls"] = calls
        return message


def reader_of(chat: ChatRequest) -> ChoiceReader:
    """Return what reads one choice of a request."""
    return ChoiceReader(chat.may_call, chat.parallel_tool_calls is not False, chat.include_reasoning is not False)


def _reasoning(text: str) -> Json:
    """Return thoughts under both names: vLLM's first and DeepSeek's one, and vLLM's newer one."""
    return {"reasoning_content": text, "reasoning": text}
