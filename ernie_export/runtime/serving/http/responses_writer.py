"""Write an answer as a response of OpenAI's /v1/responses, whole or as its events."""

import time
import uuid
from collections.abc import Iterator
from typing import Any

from ernie_export.runtime.scheduler import Output
from ernie_export.runtime.serving.http.answer import ChoiceReader, Delta
from ernie_export.runtime.serving.http.chat_writer import usage
from ernie_export.runtime.serving.http.events import Json, dump
from ernie_export.runtime.serving.http.service import Generation
from ernie_export.runtime.serving.http.token_logprobs import token_logprobs
from ernie_export.runtime.token_bytes import TokenBytes
from ernie_export.runtime.tool_calls import ToolCall

# Of a request, what its response repeats, with what stands there where the request does not say.
ECHOED: Json = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "user": None,
}


class ResponsesWriter:
    """The writer of one response: items of thoughts, text and calls, in the order in which they come."""

    def __init__(
        self, asked: Json, generation: Generation, model_name: str, token_bytes: TokenBytes, reader: ChoiceReader
    ) -> None:
        """Start a response. `asked`: what it repeats of its request, see `ECHOED`; `reader`: reads the one choice."""
        self._generation = generation
        self._token_bytes = token_bytes
        self._reader = reader
        self._response: Json = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model_name,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            **ECHOED,
            **asked,
        }
        self._number = 0
        self._items: list[Json] = []
        self._open: Json | None = None  # the item that is written now, one of text or thoughts
        self._text: list[str] = []  # of the open item
        self._logprobs: list[Json] = []
        self._waiting: list[Json] = []  # of tokens that have completed no text yet
        self._reason = ""

    def take(self, index: int, output: Output) -> None:
        """Keep an output for `completion`."""
        for _ in self.chunks(index, output):
            pass

    def completion(self) -> bytes:
        """Return the complete response as JSON."""
        for _ in self._end_items():
            pass
        return dump(self._final())

    def opening(self) -> Iterator[bytes]:
        """Yield the events that say that the response has begun."""
        response = {**self._response, "status": "in_progress", "output": [], "usage": None}
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def chunks(self, index: int, output: Output) -> Iterator[bytes]:
        """Yield the events that an output adds."""
        delta: Delta = self._reader.read(output)
        self._waiting += token_logprobs(output, self._token_bytes)
        if delta.reasoning:
            yield from self._add_text("reasoning", delta.reasoning)
        if delta.text:
            yield from self._add_text("message", delta.text)
        for call in delta.calls:
            yield from self._add_call(call)
        self._reason = delta.finish_reason or self._reason

    def closing(self) -> Iterator[bytes]:
        """Yield the events that end the response."""
        yield from self._end_items()
        response = self._final()
        yield self._event(f"response.{response['status']}", response=response)

    def _final(self) -> Json:
        counts = usage(self._generation)
        status = "incomplete" if self._reason == "length" else "completed"
        return {
            **self._response,
            "status": status,
            "completed_at": int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": self._items,
            "usage": {
                "input_tokens": counts["prompt_tokens"],
                "input_tokens_details": {**counts["prompt_tokens_details"], "cache_write_tokens": 0},
                "output_tokens": counts["completion_tokens"],
                "output_tokens_details": counts["completion_tokens_details"],
                "total_tokens": counts["total_tokens"],
            },
        }

    def _add_text(self, kind: str, text: str) -> Iterator[bytes]:
        """Yield the events of text in an item of a "message" or of "reasoning", which begins here if none is open."""
        if self._open is None or self._open["type"] != kind:
            yield from self._end_item()
            yield from self._begin_item(kind)
        self._text.append(text)
        logprobs, self._waiting = self._waiting, []
        if kind == "message":
            self._logprobs += logprobs
            yield self._event("response.output_text.delta", **self._place(), delta=text, logprobs=logprobs)
        else:
            yield self._event("response.reasoning_text.delta", **self._place(), delta=text)

    def _begin_item(self, kind: str) -> Iterator[bytes]:
        prefix = "msg" if kind == "message" else "rs"
        own: Json = {"role": "assistant"} if kind == "message" else {"summary": []}
        self._open = {"id": f"{prefix}_{uuid.uuid4().hex}", "type": kind, "status": "in_progress", **own, "content": []}
        yield self._event("response.output_item.added", output_index=len(self._items), item=self._open)
        yield self._event("response.content_part.added", **self._place(), part=self._part("", []))

    def _end_item(self, status: str = "completed") -> Iterator[bytes]:
        """Yield the events that end the open item, if there is one."""
        if self._open is None:
            return
        text = "".join(self._text)
        part = self._part(text, self._logprobs)
        if self._open["type"] == "message":
            yield self._event("response.output_text.done", **self._place(), text=text, logprobs=self._logprobs)
        else:
            yield self._event("response.reasoning_text.done", **self._place(), text=text)
        yield self._event("response.content_part.done", **self._place(), part=part)
        item = {**self._open, "status": status, "content": [part]}
        yield self._event("response.output_item.done", output_index=len(self._items), item=item)
        self._items.append(item)
        self._open = None
        self._text = []
        self._logprobs = []

    def _end_items(self) -> Iterator[bytes]:
        """Yield the events that end the last item; an answer of nothing is an empty message."""
        if self._open is None and not self._items:
            yield from self._begin_item("message")
        yield from self._end_item("incomplete" if self._reason == "length" else "completed")

    def _add_call(self, call: ToolCall) -> Iterator[bytes]:
        yield from self._end_item()
        self._waiting = []
        item: Json = {
            "id": f"fc_{uuid.uuid4().hex}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": call.id,
            "name": call.name,
            "arguments": "",
        }
        place = {"item_id": item["id"], "output_index": len(self._items)}
        yield self._event("response.output_item.added", output_index=len(self._items), item=item)
        yield self._event("response.function_call_arguments.delta", **place, delta=call.arguments)
        yield self._event("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments)
        item = {**item, "status": "completed", "arguments": call.arguments}
        yield self._event("response.output_item.done", output_index=len(self._items), item=item)
        self._items.append(item)

    def _place(self) -> Json:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self._items), "content_index": 0}

    def _part(self, text: str, logprobs: list[Json]) -> Json:
        assert self._open is not None
        if self._open["type"] == "message":
            return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
        return {"type": "reasoning_text", "text": text}

    def _event(self, kind: str, **fields: Any) -> bytes:
        content = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), dump(content))
