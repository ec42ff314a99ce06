"""Preprocessing: chat messages with pictures and clips to the arrays that the graphs take, without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ernie_export.runtime.preprocess.chat import ChatProcessor, check_counts
from ernie_export.runtime.preprocess.image import ImageProcessor
from ernie_export.runtime.preprocess.messages import Message, media
from ernie_export.runtime.preprocess.positions import IMAGE, VIDEO, token_types
from ernie_export.runtime.preprocess.video import TEMPORAL_PATCH, VideoProcessor
from numpy.typing import NDArray

__all__ = ["ChatProcessor", "ImageProcessor", "Medium", "Preprocessor", "Prompt", "VideoProcessor"]


@dataclass(frozen=True)
class Medium:
    """One picture or clip of a prompt.

    `grid` is (t, h, w) in patches; `rows` its rows of pixel_values (kind "image") or pixel_values_videos ("video");
    `tokens` its placeholder tokens in the prompt.
    """

    kind: str
    grid: tuple[int, int, int]
    rows: slice
    tokens: slice


@dataclass(frozen=True)
class Prompt:
    """One conversation: its arrays, named as the reference's processor names them, and its media in prompt order."""

    inputs: dict[str, NDArray[Any]]
    media: tuple[Medium, ...]


@dataclass(frozen=True)
class Preprocessor:
    """The checkpoint's whole processor: images, videos, template and tokenizer."""

    images: ImageProcessor
    videos: VideoProcessor
    chat: ChatProcessor

    @classmethod
    def from_folder(cls, folder: Path) -> "Preprocessor":
        """Read the processor files of a checkpoint or a bundle. Raises UserError for what is missing or not known."""
        folder = Path(folder)
        return cls(
            ImageProcessor.from_folder(folder), VideoProcessor.from_folder(folder), ChatProcessor.from_folder(folder)
        )

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        base: Path | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """The arrays of one conversation (batch of 1), as `prepare` makes them."""
        prompt = self.prepare(messages, add_generation_prompt=add_generation_prompt, base=base, variables=variables)
        return prompt.inputs

    def prepare(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        base: Path | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """Preprocess one conversation.

        `base` is the folder of relative paths; `variables` go to the chat template. The arrays are input_ids,
        attention_mask, mm_token_type_ids and moe_mm_token_type_ids, int64 (1, tokens); with images, pixel_values
        float32 (patches, 3·patch²) and image_grid_thw int64 (images, 3); with videos, pixel_values_videos and
        video_grid_thw likewise. Raises UserError for malformed messages and for media that cannot be read; counts are
        checked before anything is decoded.
        """
        sources = media(messages, base)
        text = self.chat.render(messages, add_generation_prompt, variables)
        places = self.chat.placeholders(text)
        check_counts(places, len(sources.images), len(sources.videos))
        inputs: dict[str, NDArray[Any]] = {}
        grids: dict[str, NDArray[np.int64]] = {}
        if sources.images:
            pixels, grids["image"] = self.images([self.images.load(source) for source in sources.images])
            inputs |= {"pixel_values": pixels, "image_grid_thw": grids["image"]}
        if sources.videos:
            clips = [self.videos.load(source, fps) for source, fps in zip(sources.videos, sources.fps, strict=True)]
            pixels, grids["video"] = self.videos(clips)
            inputs |= {"pixel_values_videos": pixels, "video_grid_thw": grids["video"]}
        ids = np.array([self.chat.encode(text, grids.get("image"), grids.get("video"))], dtype=np.int64)
        types, moe_types = token_types(ids, self.chat.token_ids)
        tokens = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "mm_token_type_ids": types,
            "moe_mm_token_type_ids": moe_types,
        }
        return Prompt(tokens | inputs, self._media(places, grids, types[0]))

    def _media(
        self, places: list[str], grids: dict[str, NDArray[np.int64]], types: NDArray[np.int64]
    ) -> tuple[Medium, ...]:
        columns = {"image": np.flatnonzero(types == IMAGE), "video": np.flatnonzero(types == VIDEO)}
        merge = {"image": self.chat.image_merge**2, "video": self.chat.video_merge**2 * TEMPORAL_PATCH}
        seen = {"image": 0, "video": 0}
        row, token = dict(seen), dict(seen)
        result = []
        for kind in places:
            t, h, w = (int(n) for n in grids[kind][seen[kind]])
            rows, count = t * h * w, t * h * w // merge[kind]
            first = int(columns[kind][token[kind]])
            spans = slice(row[kind], row[kind] + rows), slice(first, first + count)
            result.append(Medium(kind, (t, h, w), *spans))
            seen[kind], row[kind], token[kind] = seen[kind] + 1, row[kind] + rows, token[kind] + count
        return tuple(result)
