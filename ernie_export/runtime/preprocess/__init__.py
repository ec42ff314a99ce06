"""Preprocess chat messages with images and videos into the arrays that the graphs take, without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ernie_export.common.errors import ContextLengthExceeded, InvalidFile, InvalidValue
from ernie_export.common.manifest_sections import ModelInfo
from ernie_export.common.processor_settings import IMAGE_PROCESSOR, NESTED_FILE, VIDEO_PROCESSOR
from ernie_export.runtime.preprocess import tokenizer_settings
from ernie_export.runtime.preprocess.chat import ChatProcessor, check_counts
from ernie_export.runtime.preprocess.image import ImageProcessor, ImageSource
from ernie_export.runtime.preprocess.messages import Media, Message, media
from ernie_export.runtime.preprocess.pixels import Planes
from ernie_export.runtime.preprocess.positions import IMAGE, VIDEO, rope_positions, token_types
from ernie_export.runtime.preprocess.settings import PixelSettings
from ernie_export.runtime.preprocess.video import TEMPORAL_PATCH, SampledVideo, VideoProcessor, VideoSource

__all__ = ["ChatProcessor", "ImageProcessor", "MediaItem", "Prepared", "Preprocessor", "VideoProcessor"]


# Text has about 4 characters a token, and repeated ones up to the longest piece of the vocabulary. Beyond this a prompt
# is too long whatever it says; tokenizing it all the same would take seconds and gigabytes.
MAX_CHARACTERS_PER_TOKEN = 32


@dataclass(frozen=True)
class MediaItem:
    """One image or video of a prompt.

    Attributes:
        kind: "image" or "video".
        grid: (t, h, w) in patches.
        pixels: float32 (t·h·w, 3·patch²), its rows of pixel_values or pixel_values_videos, as a view.
        tokens: Slice of its placeholder tokens in the prompt.
    """

    kind: str
    grid: tuple[int, int, int]
    pixels: NDArray[np.float32]
    tokens: slice


@dataclass(frozen=True)
class Prepared:
    """One preprocessed conversation.

    Attributes:
        arrays: Arrays under the names of the reference's processor.
        items: Images and videos in prompt order.
        position_ids: int64 (3, 1, tokens), as `rope_positions` returns them.
    """

    arrays: dict[str, NDArray[Any]]
    items: tuple[MediaItem, ...]
    position_ids: NDArray[np.int64]

    def media(self) -> tuple[list[NDArray[np.float32]], list[tuple[int, int, int]]]:
        """Return the pixels and grids of the media in prompt order."""
        return [item.pixels for item in self.items], [item.grid for item in self.items]


class MediaDecoder(Protocol):
    """Turns media as messages name them into resized pixels, uint8 (frames, 3, height, width)."""

    def image(self, source: ImageSource, name: str) -> Planes:
        """Decode and resize one image. Raises InvalidMedia, naming it `name`."""
        ...

    def video(self, source: VideoSource | SampledVideo, fps: float | None, name: str) -> Planes:
        """Decode, sample, stamp and resize one video. Raises InvalidMedia, naming it `name`."""
        ...


@dataclass(frozen=True)
class LocalDecoder:
    """Decodes in this process."""

    images: ImageProcessor
    videos: VideoProcessor

    def image(self, source: ImageSource, name: str) -> Planes:
        """Decode and resize one image."""
        return self.images.decode(source, name)

    def video(self, source: VideoSource | SampledVideo, fps: float | None, name: str) -> Planes:
        """Decode, sample, stamp and resize one video."""
        return self.videos.decode(source, fps, name)


@dataclass(frozen=True)
class Preprocessor:
    """The processor of a checkpoint: images, videos, chat template and tokenizer.

    Attributes:
        images: The image processor.
        videos: The video processor.
        chat: Chat template and tokenizer.
        folder: Where their files were read.
        decoder: Decodes the media of a conversation; None to decode in this process.
    """

    images: ImageProcessor
    videos: VideoProcessor
    chat: ChatProcessor
    folder: Path
    decoder: MediaDecoder | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> "Preprocessor":
        """Read the processor files of a checkpoint or a bundle. Raises InvalidFile for a missing or malformed one."""
        folder = Path(folder)
        return cls(
            images=ImageProcessor.from_folder(folder),
            videos=VideoProcessor.from_folder(folder),
            chat=ChatProcessor.from_folder(folder),
            folder=folder,
        )

    def with_limit(self, max_source_pixels: int) -> "Preprocessor":
        """Return the processor with another limit on the pixels of an image or a video's frame."""
        limits = replace(self.videos.limits, max_source_pixels=max_source_pixels)
        images = replace(self.images, max_source_pixels=max_source_pixels)
        return replace(self, images=images, videos=replace(self.videos, limits=limits))

    def check(self, folder: Path, model_info: ModelInfo) -> None:
        """Raise InvalidFile where the processor files of bundle `folder` do not fit its model."""
        for kind, settings in ((IMAGE_PROCESSOR, self.images.settings), (VIDEO_PROCESSOR, self.videos.settings)):
            for key, size, expected in (
                ("patch_size", settings.patch_size, model_info.patch_size),
                ("merge_size", settings.merge_size, model_info.spatial_merge_size),
            ):
                if size != expected:
                    hint = f"or in {NESTED_FILE}"
                    raise InvalidFile(folder / kind.files[0], f"{expected}, as the model has", size, key=key, hint=hint)
        largest = max(self.chat.tokenizer.backend.get_vocab().values(), default=0)
        if largest >= model_info.vocab_size:
            expected_ids = f"ids below {model_info.vocab_size}, the model's vocab_size"
            raise InvalidFile(folder / tokenizer_settings.FILE, expected_ids, largest)

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        base: Path | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Return the arrays of one conversation (batch of 1). See `prepare` for arguments and errors."""
        return self.prepare(
            messages, add_generation_prompt=add_generation_prompt, base=base, variables=variables
        ).arrays

    def prepare(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        base: Path | None = None,
        variables: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
    ) -> Prepared:
        """Preprocess one conversation.

        The arrays are input_ids, attention_mask, mm_token_type_ids and moe_mm_token_type_ids, int64 (1, tokens); with
        images, pixel_values float32 (patches, 3·patch²) and image_grid_thw int64 (images, 3); with videos,
        pixel_values_videos and video_grid_thw likewise.

        Args:
            messages: The conversation.
            add_generation_prompt: Whether the prompt ends where the assistant's answer begins.
            continue_final_message: Whether it ends within the last message, which the answer goes on with.
            base: Folder that relative paths start at; None for the working folder.
            variables: Passed to the chat template.
            max_tokens: Longest prompt. Far longer text is refused before anything is decoded or tokenized.

        Raises:
            InvalidValue: The messages are malformed. Counts of media are checked before anything is decoded.
            InvalidMedia: An image or video cannot be read.
            ContextLengthExceeded: The prompt has more than `max_tokens` tokens, or is too long to be tokenized.
        """
        sources = media(messages, base)
        text = self.chat.render(messages, add_generation_prompt, variables, continue_final_message)
        if max_tokens is not None:
            self.check_length(text, max_tokens)
        kinds = self.chat.placeholders(text)
        check_counts(kinds, len(sources.images), len(sources.videos), self.chat.count_hints)
        pixels, grids = self._pack(sources, max_tokens)
        arrays: dict[str, NDArray[Any]] = {}
        if sources.images:
            arrays |= {"pixel_values": pixels["image"], "image_grid_thw": grids["image"]}
        if sources.videos:
            arrays |= {"pixel_values_videos": pixels["video"], "video_grid_thw": grids["video"]}
        ids = self.chat.encode(text, grids.get("image"), grids.get("video"))
        prepared = self._prepared(ids, grids, max_tokens)
        items = self._items(kinds, pixels, grids, prepared.arrays["mm_token_type_ids"][0])
        return replace(prepared, arrays=arrays | prepared.arrays, items=items)

    def prepare_text(self, text: str | Sequence[int], max_tokens: int) -> Prepared:
        """Preprocess a plain text, or token ids, without the chat template.

        Args:
            text: The text, or ids of the vocabulary.
            max_tokens: Longest prompt.

        Raises:
            InvalidValue: It is empty, has an id beyond the vocabulary, or a placeholder of an image or video.
            ContextLengthExceeded: It has more than `max_tokens` tokens.
        """
        if isinstance(text, str):
            self.check_length(text, max_tokens)
            ids = self.chat.tokenizer.encode(text)
        else:
            ids = list(text)
            unknown = next((id for id in ids if self.chat.tokenizer.backend.id_to_token(id) is None), None)
            if unknown is not None:
                raise InvalidValue("prompt", "token ids of the vocabulary", unknown)
        if not ids:
            raise InvalidValue("prompt", "at least one token", "none")
        prepared = self._prepared(ids, {}, max_tokens)
        if prepared.arrays["moe_mm_token_type_ids"].any():
            raise InvalidValue("prompt", "a text without tokens of images and videos", "one of these")
        return prepared

    def check_length(self, text: str, max_tokens: int) -> None:
        """Raise ContextLengthExceeded for a text that is certainly longer, before it is tokenized as a whole."""
        if len(text) > MAX_CHARACTERS_PER_TOKEN * max_tokens:
            raise ContextLengthExceeded("prompt", f"at most {max_tokens} tokens", f"{len(text)} characters")
        if self.chat.tokenizer.is_longer(text, max_tokens):
            raise ContextLengthExceeded("prompt", f"at most {max_tokens} tokens", "more")

    def _prepared(self, ids: list[int], grids: Mapping[str, NDArray[np.int64]], max_tokens: int | None) -> Prepared:
        """Return the arrays of token ids and the positions. Raises ContextLengthExceeded for too many."""
        if max_tokens is not None and len(ids) > max_tokens:
            raise ContextLengthExceeded("prompt", f"at most {max_tokens} tokens", len(ids))
        input_ids = np.array([ids], dtype=np.int64)
        types, moe_types = token_types(input_ids, self.chat.token_ids)
        arrays = {
            "input_ids": input_ids,
            "attention_mask": np.ones_like(input_ids),
            "mm_token_type_ids": types,
            "moe_mm_token_type_ids": moe_types,
        }
        merge_size = self.chat.merge_size
        positions = rope_positions(
            input_ids, types, grids.get("image"), grids.get("video"), spatial_merge_size=merge_size
        )
        return Prepared(arrays, (), positions)

    def _pack(
        self, sources: Media, max_tokens: int | None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.int64]]]:
        """Decode all media and return their patches and grids by kind.

        Small frames are enlarged and patches take four times the memory of pixels: nothing more is decoded once the
        media alone have more than `max_tokens` tokens, for which this raises ContextLengthExceeded.
        """
        decoder = self.decoder or LocalDecoder(self.images, self.videos)
        images: list[Planes] = []
        videos: list[Planes] = []
        tokens = 0

        def count(planes: Planes, temporal: int, settings: PixelSettings) -> None:
            nonlocal tokens
            frames, _, height, width = planes.shape
            tokens += -(-frames // temporal) * (height // settings.factor) * (width // settings.factor)
            if max_tokens is not None and tokens > max_tokens:
                found = f"{tokens} in the first of its images and videos"
                raise ContextLengthExceeded("prompt", f"at most {max_tokens} tokens", found)

        for source, name in zip(sources.images, sources.image_names, strict=True):
            images.append(decoder.image(source, name))
            count(images[-1], 1, self.images.settings)
        for video, fps, name in zip(sources.videos, sources.fps, sources.video_names, strict=True):
            videos.append(decoder.video(video, fps, name))
            count(videos[-1], TEMPORAL_PATCH, self.videos.settings)
        pixels: dict[str, NDArray[np.float32]] = {}
        grids: dict[str, NDArray[np.int64]] = {}
        if images:
            pixels["image"], grids["image"] = self.images.pack(images)
        if videos:
            pixels["video"], grids["video"] = self.videos.pack(videos)
        return pixels, grids

    def measure(self, kind: str, source: Path | bytes) -> tuple[tuple[int, int, int], int]:
        """Return the grid (t, h, w) in patches of an "image" or a "video", and its number of prompt tokens.

        Raises InvalidMedia for a file that cannot be read.
        """
        if kind == "image":
            _, grids = self.images([self.images.load(source)])
        else:
            _, grids = self.videos([self.videos.load(source)])
        t, h, w = (int(n) for n in grids[0])
        return (t, h, w), int(self.chat.token_counts(kind, grids)[0])

    def _items(
        self,
        kinds: list[str],
        pixels: dict[str, NDArray[np.float32]],
        grids: dict[str, NDArray[np.int64]],
        types: NDArray[np.int64],
    ) -> tuple[MediaItem, ...]:
        queues = {}
        for kind, number in (("image", IMAGE), ("video", VIDEO)):
            rows = grids.get(kind, np.zeros((0, 3), np.int64))
            counts = self.chat.token_counts(kind, rows)
            first_tokens = np.flatnonzero(types == number)[np.cumsum(counts) - counts]
            last_rows = np.cumsum(rows.prod(axis=1))
            queues[kind] = iter(zip(rows, counts, first_tokens, last_rows, strict=True))
        items = []
        for kind in kinds:
            grid, count, token, end = next(queues[kind])
            t, h, w = (int(n) for n in grid)
            span = slice(int(token), int(token + count))
            items.append(MediaItem(kind, (t, h, w), pixels[kind][end - t * h * w : end], span))
        return tuple(items)
