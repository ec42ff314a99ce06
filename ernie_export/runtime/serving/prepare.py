"""Make a prompt from the messages of an untrusted request. Every server uses this function."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.preprocess import MediaItem, Prepared, Preprocessor
from ernie_export.runtime.preprocess.messages import Message
from ernie_export.runtime.sequence import Prompt
from ernie_export.runtime.serving.media_limits import MediaLimits
from ernie_export.runtime.serving.media_options import AS_THE_BUNDLE, MediaOptions
from ernie_export.runtime.serving.media_pool import Cancelled, MediaPool, PooledDecoder
from ernie_export.runtime.serving.untrusted_media import count_media, limit_media


@dataclass(frozen=True)
class Conversation:
    """The messages of a request, and how a prompt is made of them.

    Attributes:
        messages: The conversation. Its media are bytes, as `confine` leaves them.
        template_variables: Variables of the chat template.
        add_generation_prompt: Whether the prompt ends where the assistant's answer begins.
        continue_final_message: Whether the answer goes on with the last message.
        media_options: How the images and videos are processed.
    """

    messages: Sequence[Message]
    template_variables: Mapping[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    media_options: MediaOptions = AS_THE_BUNDLE


@dataclass(frozen=True)
class PreparedRequest:
    """A prompt with its media encoded, and a description of each image and video without its pixels."""

    prompt: Prompt
    media: tuple[MediaItem, ...]


def prepare_request(
    model: Model,
    conversation: Conversation,
    limits: MediaLimits,
    deadline: float,
    pool: MediaPool,
    *,
    cancelled: Callable[[], bool] = lambda: False,
    max_prompt_tokens: int | None = None,
) -> PreparedRequest:
    """Decode, tokenize and encode the messages of one request, for as many answers as it asks for.

    Args:
        model: The model that will answer.
        conversation: The messages.
        limits: What the media may amount to.
        deadline: The time by `time.monotonic()` at which decoding is given up.
        pool: Processes that decode the media.
        cancelled: Whether the request has ended in the meantime.
        max_prompt_tokens: The longest prompt; None for the model's own limit alone.

    Raises:
        InvalidMedia: An image or video cannot be decoded or exceeds a limit; `field` names it.
        InvalidValue: The messages are malformed.
        ContextLengthExceeded: The prompt is too long.
        Cancelled: The request has ended.
    """
    longest = model.manifest.model.max_positions - 1  # an answer has one token at least
    most = longest if max_prompt_tokens is None else min(max_prompt_tokens, longest)
    prepared = preprocess_request(
        model.preprocessor, conversation, limits, deadline, pool, cancelled=cancelled, max_tokens=most
    )
    prompt = model.prompt(prepared, partial(_raise_if, cancelled))
    descriptions = tuple(replace(item, pixels=np.empty((0, 0), np.float32)) for item in prepared.items)
    return PreparedRequest(prompt, descriptions)


def preprocess_request(
    preprocessor: Preprocessor,
    conversation: Conversation,
    limits: MediaLimits,
    deadline: float,
    pool: MediaPool,
    *,
    cancelled: Callable[[], bool],
    max_tokens: int,
) -> Prepared:
    """Decode and tokenize the messages of one request: `prepare_request` but for the vision encoder.

    Args:
        preprocessor: The model's.
        conversation: The messages.
        limits: What the media may amount to.
        deadline: The time by `time.monotonic()` at which decoding is given up.
        pool: Processes that decode the media.
        cancelled: Whether the request has ended in the meantime.
        max_tokens: The longest prompt.

    Raises:
        UserError: See `prepare_request`.
        Cancelled: The request has ended.
    """
    options = conversation.media_options
    media_count = count_media(conversation.messages)
    limits.check_count(media_count)
    limited = limit_media(options.apply(preprocessor), limits, media_count, deadline)
    decoder = PooledDecoder(
        pool=pool,
        options=options,
        images=limited.images,
        videos=limited.videos,
        image_seconds=limits.image_seconds,
        video_seconds=limits.video_seconds,
        deadline=deadline,
        cancelled=cancelled,
    )
    return replace(limited, decoder=decoder).prepare(
        conversation.messages,
        variables=conversation.template_variables,
        add_generation_prompt=conversation.add_generation_prompt,
        continue_final_message=conversation.continue_final_message,
        max_tokens=max_tokens,
    )


def prepare_text(model: Model, text: str | Sequence[int], max_prompt_tokens: int | None = None) -> PreparedRequest:
    """Return the prompt of a plain text, or of token ids, without a chat template.

    Raises InvalidValue for a placeholder of an image or video in it, or an id that the vocabulary does not have, and
    ContextLengthExceeded for one that is too long.
    """
    longest = model.manifest.model.max_positions - 1  # an answer has one token at least
    limit = longest if max_prompt_tokens is None else min(max_prompt_tokens, longest)
    return PreparedRequest(model.prompt(model.preprocessor.prepare_text(text, limit)), ())


def _raise_if(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled
