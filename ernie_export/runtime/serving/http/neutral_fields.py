"""Fields of a request that are taken with the values that have no effect, and refused with any other.

Load generators, chat pages and gateways send many of them.
"""

from typing import Any

from ernie_export.runtime.serving.http.errors import ApiError

MAX_TYPE_LENGTH = 256  # of a part; the known ones are shorter
# Values without effect of fields that are known but not supported.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (False,),
    "audio": (),
    "best_of": (1,),
    "cache_salt": (),
    "chat_template": (),
    "documents": ([],),
    "ec_transfer_params": ({},),
    "function_call": ("none",),
    "functions": ([],),
    "kv_transfer_params": ({},),
    "length_penalty": (1,),
    "logprob_token_ids": (),
    "modalities": (["text"],),
    "prediction": (),
    "priority": (0,),
    "repetition_detection": (),
    "return_mm_kwargs": (True, False),
    "return_prompt_text": (False,),
    "return_token_ids": (False,),
    "return_token_offsets": (False,),
    "return_tokens_as_token_ids": (False,),
    "routed_experts_prompt_start": (0,),
    "store": (False,),
    "stream_interval": (1,),
    "truncate_prompt_tokens": (),
    "truncation_side": ("left", "right"),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "vllm_xargs": ({},),
    "watermarking": (False,),
    "web_search_options": (),
}
# Fields of bookkeeping, on which no answer depends.
_INERT = (
    "metadata", "prompt_cache_key", "prompt_cache_retention", "request_id", "safety_identifier", "service_tier",
    "session_id", "user",
)  # fmt: skip
# The same of an assistant's message, which the openai client sends back as it received it.
_NEUTRAL_OF_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": ([],), "audio": (), "function_call": (), "refusal": ()
}  # fmt: skip


def drop_neutral(document: dict[str, Any]) -> dict[str, Any]:
    """Return a request without null values and fields that have no effect, its messages' included.

    Raises ApiError 400 for a field that is known and not supported.
    """
    document = {name: value for name, value in document.items() if name not in _INERT and value is not None}
    document = _without_neutral(document, _NEUTRAL, "")
    messages = document.get("messages")
    if isinstance(messages, list):
        document["messages"] = [
            _bare_message(message, f"messages.{i}.") if isinstance(message, dict) else message
            for i, message in enumerate(messages)
        ]
    return document


def _without_neutral(document: dict[str, Any], neutral: dict[str, tuple[Any, ...]], where: str) -> dict[str, Any]:
    for name, values in neutral.items():
        value = document.get(name)
        if value is not None and value not in values:
            raise ApiError(400, f"{where}{name}: not supported", where + name, "unsupported_parameter")
    return {name: value for name, value in document.items() if name not in neutral}


def _bare_message(message: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a message without what clients add for others: its id, marks for caches, null for an empty answer."""
    bare = _without_neutral(message, _NEUTRAL_OF_MESSAGE, where)
    bare.pop("id", None)
    if bare.get("role") == "assistant" and bare.get("content") is None and ("content" in bare or "tool_calls" in bare):
        bare["content"] = ""
    if isinstance(bare.get("content"), list):
        bare["content"] = [_bare_part(part) if isinstance(part, dict) else part for part in bare["content"]]
    return bare


def _bare_part(part: dict[str, Any]) -> dict[str, Any]:
    """Return a part without marks for caches, and with the beginning of its type: pydantic writes it in an error."""
    bare = {name: value for name, value in part.items() if name != "cache_control"}
    if isinstance(bare.get("type"), str):
        bare["type"] = bare["type"][:MAX_TYPE_LENGTH]
    return bare
