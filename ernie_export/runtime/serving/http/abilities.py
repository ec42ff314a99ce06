"""What a request may ask of a model: tools where its chat template has a place for them, thoughts where it thinks."""

from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.serving.http.errors import ApiError
from ernie_export.runtime.serving.http.schema import ChatRequest


def without_ignored(chat: ChatRequest, ignore_tools: bool) -> ChatRequest:
    """Return a request without its tools if an option of the server says so and none of them has to be called."""
    if not ignore_tools or chat.tool_choice not in (None, "auto", "none"):
        return chat
    return chat.model_copy(update={"tools": None, "tool_choice": None})


def check_abilities(chat: ChatRequest, model: Model) -> None:
    """Raise ApiError 400, naming the field, for tools or thoughts that the model has no place for."""
    tools_at = next((f"messages.{i}.role" for i, message in enumerate(chat.messages) if message.role == "tool"), None)
    if (chat.may_call or tools_at) and not model.preprocessor.chat.renders_tools:
        param = "tools" if chat.may_call else tools_at
        hint = " (--ignore-tools answers without them)" if chat.may_call else ""
        problem = f"{param}: not supported, the model's chat template has no place for tools{hint}"
        raise ApiError(400, problem, param, "unsupported_parameter")
    if chat.reasoning_effort not in (None, "none") and model.answers.think is None:
        problem = "reasoning_effort: expected none, the model does not think"
        raise ApiError(400, problem, "reasoning_effort", "unsupported_parameter")
