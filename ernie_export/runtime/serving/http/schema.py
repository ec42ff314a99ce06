"""The fields of a request: those of OpenAI's chat completions, and vLLM's extras that the sampler supports."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ernie_export.common.errors import InvalidValue
from ernie_export.runtime.serving.http.media_schema import LoaderOptions, ProcessorOptions, media_options
from ernie_export.runtime.serving.http.structured_schema import ResponseFormat, StructuredOutputsField
from ernie_export.runtime.serving.http.tool_schema import MAX_CALLS, MAX_TOOLS, Call, NamedTool, Tool, ToolChoice
from ernie_export.runtime.serving.media_options import MediaOptions
from ernie_export.runtime.structured_outputs import StructuredOutputs
from ernie_export.runtime.tool_grammar import calls_form

MAX_ITEMS = 4096  # messages of a request, and parts of a message
MAX_STOP_LENGTH = 256
MAX_BAD_WORDS = 256
MAX_STOP_TOKENS = 256


def _whole(value: Any) -> Any:
    """Return a number without a fraction as a whole number: JSON writers of some languages know no other."""
    return int(value) if type(value) is float and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


class RequestPart(BaseModel):
    """Part of a request: every field is known, and of the type that it should have."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(RequestPart):
    """A text in a message."""

    type: Literal["text"]
    text: str


class Link(RequestPart):
    """The URL of an image or video: a data URI in base64, or an http or https URL."""

    url: str


class ImageLink(Link):
    """The URL of an image. With the detail "low" it is processed with fewer pixels."""

    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(RequestPart):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageLink


class VideoPart(RequestPart):
    """A video in a message."""

    type: Literal["video_url"]
    video_url: Link


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(RequestPart):
    """A message of the conversation. An answer goes back as it came, with its calls and its thoughts."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Field(fail_fast=True, max_length=MAX_ITEMS)]
    name: str | None = None
    tool_calls: Annotated[list[Call], Field(fail_fast=True, max_length=MAX_CALLS)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class StreamOptions(RequestPart):
    """Options of a stream. `include_obfuscation`, padding against eavesdroppers, is not supported.

    `continuous_usage_stats`, an extra of vLLM, asks for the usage so far in every chunk.
    """

    include_usage: bool = False
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class ThinkingMode(RequestPart):
    """The switch of the chat template of ERNIE-4.5-VL-28B-A3B-Thinking."""

    thinking_mode: bool | Literal["open", "close", "true", "false"] | None = None


class TemplateOptions(RequestPart):
    """Variables of the chat template, an extra of vLLM."""

    enable_thinking: bool | None = None
    options: ThinkingMode | None = None

    @property
    def thinking(self) -> bool | None:
        """Whether the model is to think; None where neither field says so."""
        mode = self.options.thinking_mode if self.options else None
        value = mode if self.enable_thinking is None else self.enable_thinking
        return None if value is None else value in (True, "open", "true")


StopString = Annotated[str, Field(max_length=MAX_STOP_LENGTH)]


TokenId = Annotated[Whole, Field(ge=0, lt=2**31)]
TokenText = Annotated[str, Field(pattern="^[0-9]{1,10}$")]


class GenerationFields(RequestPart):
    """What every request for tokens may say, whatever its prompt is made of."""

    model: str | None = None
    max_tokens: Whole | None = Field(None, ge=1)
    min_tokens: Whole | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    n: Whole | None = Field(None, ge=1, le=128)
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: Whole | None = Field(None, ge=-1, le=2**31)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[TokenText, float] | None = None
    allowed_token_ids: list[TokenId] | None = Field(None, min_length=1)
    bad_words: Annotated[list[StopString], Field(max_length=MAX_BAD_WORDS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKENS)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None  # the decoders of ERNIE's tokenizers put none there
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsField | None = None
    seed: Whole | None = Field(None, ge=-(2**63), lt=2**64)
    prompt_logprobs: Whole | None = Field(None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of an answer; None where the request does not say."""
        return self.max_tokens

    @property
    def prompt_logprob_count(self) -> int | None:
        """Alternatives whose log probabilities are returned with those of the prompt's tokens; None for none at all."""
        return self.prompt_logprobs

    @property
    def logprob_count(self) -> int | None:
        """Alternatives whose log probabilities are returned with each token's; None for no log probabilities."""
        return None

    @property
    def thoughts_budget(self) -> int | None:
        """Most tokens of thoughts; None for any number."""
        return None

    def form(self, tags_are_tokens: bool = False) -> StructuredOutputs | None:
        """Return the form that the answer must have; None for free text.

        `tags_are_tokens`: whether the tags around a call of a tool are added tokens.

        Raises InvalidValue for one that is malformed, or where two fields ask for one.
        """
        form = self.response_format.form() if self.response_format else None
        if self.structured_outputs is None:
            return form
        if form is not None:
            raise InvalidValue("structured_outputs", "none beside response_format", "both")
        return self.structured_outputs.form()


class ChatRequest(GenerationFields):
    """A request for a chat completion."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_ITEMS)]
    max_completion_tokens: Whole | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    thinking_token_budget: Whole | None = Field(None, ge=0, lt=2**31)
    include_reasoning: bool | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    echo: bool | None = None
    mm_processor_kwargs: ProcessorOptions | None = None
    media_io_kwargs: LoaderOptions | None = None

    def media_options(self) -> MediaOptions:
        """Return how the images and videos are processed. Raises InvalidValue."""
        low = frozenset(
            f"messages[{i}].content[{j}]"
            for i, message in enumerate(self.messages)
            for j, part in enumerate(message.content)
            if isinstance(part, ImagePart) and part.image_url.detail == "low"
        )
        return media_options(self.mm_processor_kwargs, self.media_io_kwargs, low)

    @property
    def begins_answer(self) -> bool:
        """Whether the prompt ends where an answer of the assistant begins."""
        return self.add_generation_prompt is not False and not self.continue_final_message

    @property
    def answer_role(self) -> str:
        """The role of the answer: the last message's where it is continued."""
        return "assistant" if self.begins_answer else self.messages[-1].role

    @property
    def echoed(self) -> str:
        """The text that `echo` puts before the answer: the last message's, where it is of the same role."""
        last = self.messages[-1]
        if not self.echo or last.role != self.answer_role:
            return ""
        if isinstance(last.content, str):
            return last.content
        return "\n".join(part.text for part in last.content if isinstance(part, TextPart))

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of an answer; None where the request does not say."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def logprob_count(self) -> int | None:
        """Alternatives whose log probabilities are returned with each token's; None for no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def thoughts_budget(self) -> int | None:
        """Most tokens of thoughts; None for any number."""
        return self.thinking_token_budget

    @property
    def thinking(self) -> bool | None:
        """Whether the model is to think: by the plainest field that says so; None where none does."""
        variables = self.chat_template_kwargs or TemplateOptions()
        for value in (self.enable_thinking, variables.thinking):
            if value is not None:
                return value
        return None if self.reasoning_effort is None else self.reasoning_effort != "none"

    def form(self, tags_are_tokens: bool = False) -> StructuredOutputs | None:
        """Return the form that the answer must have: calls where one is required, either where a form is asked for.

        A `response_format` is that of the answer's text: where a call is required, there is none.
        """
        if not self.tools or self.tool_choice == "none":
            return super().form()
        answer = self.response_format.answer_schema() if self.response_format else None
        required = self.tool_choice not in (None, "auto")
        if required and self.structured_outputs is not None:
            raise InvalidValue("structured_outputs", "none beside a tool_choice that asks for a call", "both")
        if not required and (answer is None or self.structured_outputs is not None):
            return super().form()
        name = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        return calls_form(
            [tool.variable() for tool in self.tools if name in (None, tool.function.name)],
            several=name is None and self.parallel_tool_calls is not False,
            tags_are_tokens=tags_are_tokens,
            otherwise=None if required else answer,
        )

    @property
    def may_call(self) -> bool:
        """Whether the answer may call tools."""
        return bool(self.tools) and self.tool_choice != "none"
