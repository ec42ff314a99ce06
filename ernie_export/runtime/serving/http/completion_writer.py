"""Write completions of plain prompts, as a whole or as chunks."""

import time
import uuid
from collections.abc import Iterator

from ernie_export.runtime.sampling import Logprobs
from ernie_export.runtime.scheduler import Output
from ernie_export.runtime.sequence import Sequence
from ernie_export.runtime.serving.http.chat_writer import usage
from ernie_export.runtime.serving.http.completion_schema import CompletionRequest
from ernie_export.runtime.serving.http.events import DONE, Json, dump, event
from ernie_export.runtime.serving.http.service import Generation
from ernie_export.runtime.serving.http.token_logprobs import prompt_logprobs
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
        self._echoes_logprobs = bool(request.echo) and request.logprobs is not None
        self._begun = [False] * count
        self._reasons = [""] * count
        self._stop_reasons: list[str | int | None] = [None] * count

    def take(self, index: int, output: Output) -> None:
        """Keep an output of a choice for `completion`."""
        self._texts[index].append(output.text)
        self._logprobs[index] += self._logprobs_of_echo(index) + self._token_logprobs(index, output)
        self._reasons[index] = output.finish_reason
        self._stop_reasons[index] = output.stop_reason

    def completion(self) -> bytes:
        """Return the complete answer as JSON."""
        choices = [
            self._choice(index, "".join(texts), self._logprobs[index], self._reasons[index])
            for index, texts in enumerate(self._texts)
        ]
        for choice, stop_reason in zip(choices, self._stop_reasons, strict=True):
            choice["stop_reason"] = stop_reason
        count = self._request.prompt_logprobs
        if count is not None:
            for index, choice in enumerate(choices):
                choice["prompt_logprobs"] = prompt_logprobs(self._scored(index), count, self._token_bytes)
        return dump({**self._shared, "choices": choices, "usage": usage(self._generation)})

    def opening(self) -> Iterator[bytes]:
        """Yield the echo of each choice, if the request asks for it; one with log probabilities comes with these."""
        for index, (echo,) in enumerate(self._texts):
            if echo and not self._echoes_logprobs:
                yield self._chunk(self._choice(index, echo, [], None))

    def chunks(self, index: int, output: Output) -> Iterator[bytes]:
        """Yield the chunk that an output adds to its choice, if any."""
        prompt = self._logprobs_of_echo(index)
        if prompt:
            yield self._chunk(self._choice(index, self._texts[index][0], prompt, None))
        logprobs = self._token_logprobs(index, output)
        if output.text or logprobs or output.finish_reason:
            choice = self._choice(index, output.text, logprobs, output.finish_reason or None)
            yield self._chunk(choice | ({"stop_reason": output.stop_reason} if output.finish_reason else {}))

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

    def _scored(self, index: int) -> Sequence:
        """Return the first sequence of a choice's prompt, the only one that scores it."""
        choices = len(self._generation.requests) // len(self._generation.prompts)
        return self._generation.requests[index // choices * choices].sequence

    def _logprobs_of_echo(self, index: int) -> list[Json]:
        """Return the entries of the prompt's tokens, once for each choice; none where they were not asked for."""
        if not self._echoes_logprobs or self._begun[index]:
            return []
        self._begun[index] = True
        sequence = self._scored(index)
        entries = []
        offset = 0
        for token, scores in zip(sequence.prompt.input_ids.tolist(), [None, *sequence.prompt_logprobs], strict=True):
            entries.append(self._entry(token, scores, offset))
            offset += self._shown_length(token)
        return entries

    def _token_logprobs(self, index: int, output: Output) -> list[Json]:
        """Return the entries of one token for the four lists."""
        if output.logprobs is None or output.token is None:
            return []
        entry = self._entry(output.token, output.logprobs, self._lengths[index])
        self._lengths[index] += self._shown_length(output.token)
        return [entry]

    def _entry(self, token: int, scores: Logprobs | None, offset: int) -> Json:
        """Return the entry of one token; without scores for the first of a prompt."""
        top: dict[str, float] = {}
        for id, logprob in scores.top[: self._request.logprobs] if scores else ():
            top.setdefault(self._text(id), logprob)  # of tokens with one text, such as bytes, the most likely
        return {
            "tokens": self._text(token),
            "token_logprobs": scores.chosen if scores else None,
            "top_logprobs": top if scores else None,
            "text_offset": offset,
        }

    def _shown_length(self, token: int) -> int:
        return 0 if token in self._token_bytes.special else len(self._text(token))

    def _text(self, id: int) -> str:
        return self._token_bytes(id).decode(errors="replace")
