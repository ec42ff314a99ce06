"""The most tokens of an answer where nobody says how many."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_export.runtime.pipeline import Model

DEFAULT_NEW_TOKENS = 1024  # of an answer without thoughts


def default_new_tokens(model: "Model", enable_thinking: bool | None, min_new_tokens: int) -> int | None:
    """Return the most tokens of an answer; None for what the context and the KV cache leave.

    It is `max_new_tokens` of the bundle's generation_config.json. Without one, nothing cuts an answer with thoughts:
    cut within them it says nothing.

    Args:
        model: The model that answers.
        enable_thinking: Whether it thinks before it answers; None for the chat template's default.
        min_new_tokens: The fewest tokens that are asked for, which answers without thoughts get in any case.

    Raises:
        InvalidFile: generation_config.json is malformed.
    """
    from ernie_export.runtime.generation_config import AUTO, GenerationDefaults  # here so that --help comes at once

    recommended = GenerationDefaults.choose(AUTO, model.preprocessor.folder).max_new_tokens
    if recommended is not None:
        return recommended
    return None if model.preprocessor.chat.thinks(enable_thinking) else max(DEFAULT_NEW_TOKENS, min_new_tokens)
