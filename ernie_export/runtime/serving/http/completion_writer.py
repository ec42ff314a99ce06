"""Write completions of plain prompts, as a whole or as chunks."""

import time
import uuid
from collections.abc import Iterator

from ernie_export.runtime.scheduler import Output
from ernie_export.runtime.serving.http.chat_writer import usage
from ernie_export.runtime.serving.http.completion_schema import CompletionRequest
from ernie_export.runtime.serving.http.events import DONE, Json, dump, event
from ernie_export.runtime.serving.http.service import Generation
from ernie_export.runtime.token_bytes import TokenBytes


class CompletionWriter:
    """The writer of one response of completions.

    Log probabilities have OpenAI's older form: four lists, of tokens, of their log probabilities, of the most likely
    tokens at each place, and of the place of each token in the text.
    """

    def __init__(
        self,
        request: CompletionRequest,
        generation: Generation,
        model_name: str,
        token_bytes: TokenBytes,
        echoes: list[str],
    ) -> None:
        """Start a response. `echoes`: what each choice begins with, empty unless the request asks for an echo."""
        self._request = request
        self._generation = generation
        self._token_bytes = token_bytes
        self._shared: Json = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model_name,
        }
        count = len(generation.requests)
        self._texts = [[echo] for echo in echoes]
        self._lengths = [len(echo) for echo in echoes]  # characters, to the end of the last token
        self._logprobs: list[list[Json]] = [[] for _ in range(count)]
        self._reasons = [""] * count

    def take(self, index: int, output: Output) -> None:
        """Keep an output of a choice for `completion`."""
        self._texts[index].append(output.text)
        self._logprobs[index] += self._token_logprobs(index, output)
        self._reasons[index] = output.finish_reason

    def completion(self) -> bytes:
        """Return the complete answer as JSON."""
        choices = [
            self._choice(index, "".join(texts), self._logprobs[index], self._reasons[index])
            for index, texts in enumerate(self._texts)
        ]
        return dump({**self._shared, "choices": choices, "usage": usage(self._generation)})

    def opening(self) -> Iterator[bytes]:
        """Yield the echo of each choice, if the request asks for it."""
        for index, (echo,) in enumerate(self._texts):
            if echo:
                yield self._chunk(self._choice(index, echo, [], None))

    def chunks(self, index: int, output: Output) -> Iterator[bytes]:
        """Yield the chunk that an output adds to its choice, if any."""
        logprobs = self._token_logprobs(index, output)
        if output.text or logprobs or output.finish_reason:
            yield self._chunk(self._choice(index, output.text, logprobs, output.finish_reason or None))

    def closing(self) -> Iterator[bytes]:
        """Yield the usage if the request asks for it, and the end of the stream."""
        if self._request.stream_options and self._request.stream_options.include_usage:
            yield event({**self._shared, "choices": [], "usage": usage(self._generation)})
        yield DONE

    def _chunk(self, choice: Json) -> bytes:
        content = {**self._shared, "choices": [choice]}
        options = self._request.stream_options
        if options and options.continuous_usage_stats:
            content["usage"] = usage(self._generation)
        elif options and options.include_usage:
            content["usage"] = None
        return event(content)

    def _choice(self, index: int, text: str, logprobs: list[Json], reason: str | None) -> Json:
        lists: Json | None = None
        if self._request.logprobs is not None:
            lists = {
                name: [token[name] for token in logprobs]
                for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
            }
        return {"index": index, "text": text, "logprobs": lists, "finish_reason": reason}

    def _token_logprobs(self, index: int, output: Output) -> list[Json]:
        """Return the entries of one token for the four lists."""
        if output.logprobs is None or output.token is None:
            return []
        offset = self._lengths[index]
        text = self._text(output.token)
        if output.token not in self._token_bytes.special:
            self._lengths[index] += len(text)
        return [
            {
                "tokens": text,
                "token_logprobs": output.logprobs.chosen,
                "top_logprobs": {self._text(id): logprob for id, logprob in output.logprobs.top},
                "text_offset": offset,
            }
        ]

    def _text(self, id: int) -> str:
        return self._token_bytes(id).decode(errors="replace")
