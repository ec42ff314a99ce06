"""The questions of the interfaces: how each reads a body, and what writes its answers."""

from dataclasses import dataclass

from ernie_export.runtime.serving.http.abilities import without_ignored
from ernie_export.runtime.serving.http.chat_writer import ChatWriter
from ernie_export.runtime.serving.http.completion_schema import CompletionRequest
from ernie_export.runtime.serving.http.completion_writer import CompletionWriter
from ernie_export.runtime.serving.http.parse import parse_chat, parse_completion
from ernie_export.runtime.serving.http.schema import ChatRequest
from ernie_export.runtime.serving.http.service import Generation, Service
from ernie_export.runtime.serving.http.settings import Settings


@dataclass(frozen=True)
class ChatQuestion:
    """A question of /v1/chat/completions."""

    request: ChatRequest

    @classmethod
    def parse(cls, settings: Settings, body: bytearray) -> "ChatQuestion":
        """Read a body. Raises ApiError."""
        return cls(without_ignored(parse_chat(body, settings.max_text), settings.ignore_tools))

    def writer(self, generation: Generation, service: Service) -> ChatWriter:
        """Return what writes the answer."""
        bare = self.request.model_copy(update={"messages": []})
        return ChatWriter(bare, generation, service.settings.model_name, service.token_bytes)


@dataclass(frozen=True)
class CompletionQuestion:
    """A question of /v1/completions."""

    request: CompletionRequest

    @classmethod
    def parse(cls, settings: Settings, body: bytearray) -> "CompletionQuestion":
        """Read a body. Raises ApiError."""
        return cls(parse_completion(body, settings.max_text))

    def writer(self, generation: Generation, service: Service) -> CompletionWriter:
        """Return what writes the answer."""
        decode = service.model.preprocessor.chat.decode
        prompts = self.request.prompts if self.request.echo else [""] * len(generation.prompts)
        texts = [prompt if isinstance(prompt, str) else decode(list(prompt)) for prompt in prompts]
        echoes = [text for text in texts for _ in range(len(generation.requests) // len(texts))]
        bare = self.request.model_copy(update={"prompt": ""})
        return CompletionWriter(bare, generation, service.settings.model_name, service.token_bytes, echoes)
