"""The sampling parameters that a request asks for."""

from typing import TypeVar

from ernie_export.runtime.generation_config import GenerationDefaults
from ernie_export.runtime.sampling_params import SamplingParams
from ernie_export.runtime.serving.http.schema import GenerationFields

T = TypeVar("T")


def sampling_params(
    chat: GenerationFields, index: int, defaults: GenerationDefaults, max_new_tokens: int, tags_are_tokens: bool
) -> SamplingParams:
    """Return the sampling parameters of one choice. Its seed is `seed + index`: choices differ, yet repeat.

    Args:
        chat: The request.
        index: Which of its choices.
        defaults: What counts where the request does not say.
        max_new_tokens: Most tokens of the answer.
        tags_are_tokens: Whether the tags around a call of a tool are added tokens.

    Raises:
        InvalidValue: A field is wrong, or asks for a form that is malformed.
    """
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min(chat.min_tokens or 0, max_new_tokens),
        temperature=_given(chat.temperature, defaults.temperature),
        top_k=max(_given(chat.top_k, defaults.top_k), 0),
        top_p=_given(chat.top_p, defaults.top_p),
        repetition_penalty=_given(chat.repetition_penalty, defaults.repetition_penalty),
        seed=None if chat.seed is None else (chat.seed + index) % 2**64,
        stop=(chat.stop,) if isinstance(chat.stop, str) else tuple(chat.stop or ()),
        logprobs=chat.logprob_count,
        prompt_logprobs=None if index else chat.prompt_logprob_count,
        thinking_token_budget=chat.thoughts_budget,
        min_p=_given(chat.min_p, defaults.min_p),
        presence_penalty=chat.presence_penalty or 0.0,
        frequency_penalty=chat.frequency_penalty or 0.0,
        logit_bias={int(id): bias for id, bias in (chat.logit_bias or {}).items()},
        allowed_token_ids=None if chat.allowed_token_ids is None else tuple(chat.allowed_token_ids),
        bad_words=tuple(chat.bad_words or ()),
        stop_token_ids=tuple(chat.stop_token_ids or ()),
        ignore_eos=bool(chat.ignore_eos),
        include_stop_str_in_output=bool(chat.include_stop_str_in_output),
        skip_special_tokens=chat.skip_special_tokens is not False,
        structured_outputs=chat.form(tags_are_tokens),
    )


def _given(value: T | None, default: T) -> T:
    return default if value is None else value
