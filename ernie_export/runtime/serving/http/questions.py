"""The questions of the interfaces: how each reads a body, and what writes its answers."""

from dataclasses import dataclass

from ernie_export.runtime.serving.http.abilities import without_ignored
from ernie_export.runtime.serving.http.chat_writer import Beginning, ChatWriter, reader_of
from ernie_export.runtime.serving.http.completion_schema import CompletionRequest
from ernie_export.runtime.serving.http.completion_writer import CompletionWriter
from ernie_export.runtime.serving.http.errors import ApiError
from ernie_export.runtime.serving.http.events import Json
from ernie_export.runtime.serving.http.parse import check_chat, parse_chat, parse_completion, read_document
from ernie_export.runtime.serving.http.responses_input import Conversation, to_chat
from ernie_export.runtime.serving.http.responses_writer import ECHOED, ResponsesWriter
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

    def renamed(self, error: ApiError) -> ApiError:
        """Return an error of the runtime, which has these names."""
        return error

    def writer(self, generation: Generation, service: Service) -> ChatWriter:
        """Return what writes the answer."""
        bare = self.request.model_copy(update={"messages": []})
        beginning = Beginning(self.request.answer_role, self.request.echoed)
        return ChatWriter(bare, generation, service.settings.model_name, service.token_bytes, beginning)


@dataclass(frozen=True)
class ResponsesQuestion:
    """A question of /v1/responses, which is one of a chat in another form."""

    request: ChatRequest
    conversation: Conversation
    asked: Json

    @classmethod
    def parse(cls, settings: Settings, body: bytearray) -> "ResponsesQuestion":
        """Read a body. Raises ApiError."""
        document = read_document(body, settings.max_text)
        conversation = to_chat(document)
        try:
            request = check_chat(conversation.document, settings.max_text)
        except ApiError as e:
            raise conversation.renamed(e) from e.__cause__  # it may be the same error: its own cause would be a cycle
        asked = {name: document[name] for name in ECHOED if document.get(name) is not None}
        bare = Conversation({}, conversation.origins)
        return cls(without_ignored(request, settings.ignore_tools), bare, asked)

    def renamed(self, error: ApiError) -> ApiError:
        """Return an error with the field's name in this interface."""
        return self.conversation.renamed(error)

    def writer(self, generation: Generation, service: Service) -> ResponsesWriter:
        """Return what writes the answer."""
        reader = reader_of(self.request)
        return ResponsesWriter(self.asked, generation, service.settings.model_name, service.token_bytes, reader)


@dataclass(frozen=True)
class CompletionQuestion:
    """A question of /v1/completions."""

    request: CompletionRequest

    @classmethod
    def parse(cls, settings: Settings, body: bytearray) -> "CompletionQuestion":
        """Read a body. Raises ApiError."""
        return cls(parse_completion(body, settings.max_text))

    def renamed(self, error: ApiError) -> ApiError:
        """Return an error with the field's name in this interface."""
        param = "prompt" if error.param == "messages" else error.param
        return ApiError(error.status, error.message, param, error.code, error.headers)

    def writer(self, generation: Generation, service: Service) -> CompletionWriter:
        """Return what writes the answer."""
        decode = service.model.preprocessor.chat.decode
        prompts = self.request.prompts if self.request.echo else [""] * len(generation.prompts)
        texts = [prompt if isinstance(prompt, str) else decode(list(prompt)) for prompt in prompts]
        echoes = [text for text in texts for _ in range(len(generation.requests) // len(texts))]
        bare = self.request.model_copy(update={"prompt": ""})
        return CompletionWriter(bare, generation, service.settings.model_name, service.token_bytes, echoes)
