"""The one way from an untrusted request's messages to a prompt, which every server takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ernie_export.common.errors import ContextLengthExceeded
from ernie_export.runtime.batch import Prompt
from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.preprocess import MediaItem
from ernie_export.runtime.preprocess.messages import Message
from ernie_export.runtime.serving.media_limits import MediaLimits
from ernie_export.runtime.serving.untrusted_media import count_media, limit_media


@dataclass(frozen=True)
class PreparedRequest:
    """A prompt with its media encoded, and a description of each image and video without its pixels."""

    prompt: Prompt
    media: tuple[MediaItem, ...]


def prepare_request(
    model: Model,
    messages: Sequence[Message],
    limits: MediaLimits,
    deadline: float,
    *,
    max_prompt_tokens: int | None = None,
    template_variables: Mapping[str, Any] | None = None,
) -> PreparedRequest:
    """Decode, tokenize and encode the messages of one request, for as many answers as it asks for.

    Args:
        model: The model that will answer.
        messages: The conversation. Its media are bytes or paths that the request may name, as `confine` leaves them.
        limits: What the media may amount to.
        deadline: The time by `time.monotonic()` at which decoding a video is given up.
        max_prompt_tokens: The longest prompt; None for the model's own limit alone.
        template_variables: Variables of the chat template.

    Raises:
        InvalidMedia: An image or video cannot be decoded or exceeds a limit; `field` names it.
        InvalidValue: The messages are malformed.
        ContextLengthExceeded: The prompt is too long.
    """
    media_count = count_media(messages)
    limits.check_count(media_count)
    preprocessor = limit_media(model.preprocessor, limits, media_count, deadline)
    prepared = preprocessor.prepare(messages, variables=template_variables)
    length = prepared.arrays["input_ids"].shape[1]
    if max_prompt_tokens is not None and length > max_prompt_tokens:
        raise ContextLengthExceeded("prompt", f"at most {max_prompt_tokens} tokens", length)
    descriptions = tuple(replace(item, pixels=item.pixels[:0]) for item in prepared.items)
    return PreparedRequest(model.prompt(prepared), descriptions)
