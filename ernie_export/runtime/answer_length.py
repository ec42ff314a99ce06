"""The most tokens of an answer where nobody says how many."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_export.runtime.pipeline import Model
    from ernie_export.runtime.sampling_params import SamplingParams

DEFAULT_NEW_TOKENS = 1024  # of an answer without thoughts
MAX_NEW_TOKENS = 4096  # of a server's answer with thoughts: it keeps as much of the KV cache, and others wait for it


def default_new_tokens(
    model: "Model", enable_thinking: bool | None, min_new_tokens: int, longest: int | None = None
) -> int | None:
    """Return the most tokens of an answer; None for what the context and the KV cache leave.

    It is `max_new_tokens` of the bundle's generation_config.json. Without one, nothing but `longest` cuts an answer
    with thoughts: cut within them it says nothing.

    Args:
        model: The model that answers.
        enable_thinking: Whether it thinks before it answers; None for the chat template's default.
        min_new_tokens: The fewest tokens that are asked for, which answers without thoughts get in any case.
        longest: The most tokens of an answer with thoughts; None for what the context and the KV cache leave.

    Raises:
        InvalidFile: generation_config.json is malformed.
    """
    from ernie_export.runtime.generation_config import AUTO, GenerationDefaults  # here so that --help comes at once

    recommended = GenerationDefaults.choose(AUTO, model.preprocessor.folder).max_new_tokens
    if recommended is not None:
        return recommended
    if model.preprocessor.chat.thinks(enable_thinking):
        return None if longest is None else max(longest, min_new_tokens)
    return max(DEFAULT_NEW_TOKENS, min_new_tokens)


def served_params(model: "Model", options: Mapping[str, object]) -> "SamplingParams":
    """Return the options of an answer that a server gives beside others, at the default length if they have none.

    Raises InvalidValue for an option that is wrong, InvalidFile for a malformed generation_config.json.
    """
    from ernie_export.runtime.sampling_params import SamplingParams

    if "max_new_tokens" in options:
        return SamplingParams.from_options(options)
    params = SamplingParams.from_options({**options, "max_new_tokens": None})
    length = default_new_tokens(model, None, params.min_new_tokens, longest=MAX_NEW_TOKENS)
    return replace(params, max_new_tokens=length)
