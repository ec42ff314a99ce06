"""Videos: from a file or a list of frames to the patches that the vision encoder takes.

Bit-identical to `Ernie4_5_VLMoeVideoProcessor` after `load_video(..., backend="pyav")` with the processor's sampling:
sample, draw a timestamp on each frame, repeat the last frame of an odd count, resize, normalise, cut into patches. Two
deliberate differences: frames are turned as players turn them, and where the frame rate varies they are chosen and
stamped by the times at which they are shown.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ernie_export.common.errors import InvalidFile, InvalidMedia
from ernie_export.common.json_fields import JsonObject
from ernie_export.common.processor_settings import VIDEO_PROCESSOR, timestamp_font
from ernie_export.runtime.preprocess import pixels, settings
from ernie_export.runtime.preprocess.pixels import Planes
from ernie_export.runtime.preprocess.resample import resize_bicubic
from ernie_export.runtime.preprocess.settings import CHANNELS, MAX_COUNT, PixelSettings
from ernie_export.runtime.preprocess.video_limits import DEFAULT_FPS, DecodeLimits

TEMPORAL_PATCH = 2  # the class refuses every other value
FILTERS = (settings.BICUBIC,)

VideoSource = str | Path | bytes | NDArray[np.uint8] | Sequence[Image.Image | NDArray[np.uint8]]


@dataclass(frozen=True)
class SampledVideo:
    """The sampled frames of a video, uint8 (frames, height, width, 3) in RGB, and the second that each shows."""

    frames: NDArray[np.uint8]
    timestamps: tuple[float, ...]
    name: str = "the given video"


@dataclass(frozen=True)
class VideoProcessor:
    """The video processor of a checkpoint.

    Attributes:
        settings: What it shares with the image processor.
        table: float32 (3, 256), the model input of each channel's 256 pixel values.
        sample: Whether frames are sampled; otherwise all are taken.
        fps: Frames a second to sample; None to sample by count.
        num_frames: Frames to sample; None for `min_frames` to `max_frames` of them.
        min_frames: Fewest frames to sample, as far as the video has them.
        max_frames: Most frames to sample.
        font: Font of the timestamps; None where they are not drawn.
        limits: What a video may have to be decoded.
    """

    settings: PixelSettings
    table: pixels.Table
    sample: bool
    fps: float | None
    num_frames: int | None
    min_frames: int
    max_frames: int
    font: Path | None
    limits: DecodeLimits = field(default_factory=DecodeLimits)

    @classmethod
    def from_folder(cls, folder: Path) -> "VideoProcessor":
        """Read video_preprocessor_config.json, or `video_processor` of processor_config.json, and find the font.

        Raises InvalidFile for a missing file, or a value that would change the result and is not implemented.
        """
        section = settings.processor_settings(Path(folder), VIDEO_PROCESSOR)
        section = section.with_defaults({"min_frames": 16, "max_frames": 180}, {})
        settings.expect_class(section, "video_processor_type", settings.VIDEO_CLASSES)
        section.expect_one_of({"input_data_format": (None, "channels_last"), "do_convert_rgb": (True, False, None)})
        shared = PixelSettings.from_json(section, VIDEO_PROCESSOR, FILTERS, TEMPORAL_PATCH)
        if not (shared.do_rescale or shared.do_normalize):
            raise section.error("do_rescale", "true where do_normalize is false")
        fps = section.optional("fps", section.positive)
        num_frames = section.optional("num_frames", lambda key: section.integer(key, maximum=MAX_COUNT))
        min_frames = section.integer("min_frames", maximum=MAX_COUNT)
        max_frames = section.integer("max_frames", maximum=MAX_COUNT)
        if fps is not None and num_frames is not None:
            raise section.error("fps", "null where num_frames is set")
        if num_frames is not None and not min_frames <= num_frames <= max_frames:
            raise section.error("num_frames", f"min_frames {min_frames} to max_frames {max_frames}")
        sample = settings.flag(section, "do_sample_frames", default=True)
        font = _find_font(section)
        return cls(
            settings=shared.noting_ignored(section),
            table=pixels.video_table(shared),
            sample=sample,
            fps=fps,
            num_frames=num_frames,
            min_frames=min_frames,
            max_frames=max_frames,
            font=font,
        )

    def indices(self, total: int, rate: float | None, name: str) -> NDArray[np.int32]:
        """Return the ascending indices of the frames to take.

        `min_frames` is a floor on the sampling, not a pad: a shorter video is taken in full. The step is multiplied in
        float64, rounded to float32 and truncated, as `torch.arange(0, total, step).int()` does.

        Args:
            total: Frames that the video has.
            rate: Its frames a second; None if not known.
            name: The video, for error messages.

        Raises:
            InvalidMedia: The video has no frames, fewer than `num_frames`, or no frame rate where the settings sample
                by `fps`.
        """
        if total < 1:
            raise InvalidMedia(name, "a video with frames", "none")
        if not self.sample:
            return np.arange(total, dtype=np.int32)
        count: float
        if self.num_frames is not None:
            count = self.num_frames
        elif self.fps is None:
            count = min(max(total, self.min_frames), self.max_frames, total)
        elif rate is None:
            raise InvalidMedia(name, f"a frame rate, as the settings sample {self.fps} frames a second", "none")
        else:
            count = min(max(total / rate * self.fps, self.min_frames), self.max_frames, total)
        if count > total:
            raise InvalidMedia(name, f"at least {count} frames (num_frames)", total)
        step = total / count
        return (np.arange(math.ceil(total / step)) * step).astype(np.float32).astype(np.int32)

    def timestamps(self, indices: NDArray[np.int32], rate: float) -> tuple[float, ...]:
        """Return the seconds from the start for each index.

        They are float32 quotients after sampling and float64 without, as in the reference: sampled indices are a torch
        tensor there, and a tensor over a Python float is float32.
        """
        if not self.sample:
            return tuple(int(index) / rate for index in indices)
        return tuple(float(second) for second in indices.astype(np.float32) / np.float32(rate))

    def load(self, source: VideoSource | SampledVideo, fps: float | None = None, name: str = "") -> SampledVideo:
        """Decode a file (a path or its bytes), or take frames as they are, and sample.

        Only the sampled frames of a file are held in memory.

        Args:
            source: A file, or frames: a uint8 array (frames, height, width, 3), or a list of Pillow images or of such
                arrays without the first axis.
            fps: Frames a second of frames that are not from a file; 24 where None, as in the reference.
            name: Stands in errors for a source that is no path.

        Raises:
            InvalidMedia: The file is missing, empty, unreadable, truncated or without video; a limit is exceeded, which
                is found before anything is decoded; frames are of unequal size.
        """
        if isinstance(source, SampledVideo):
            return source
        if isinstance(source, bytes):
            return self._decode(source, name or "the given bytes")
        if isinstance(source, str | Path):
            settings.check_media(Path(source), "a video")
            return self._decode(Path(source), str(source))
        name = name or "the given frames"
        frames = _stack(source, name)
        self.limits.check_frame(frames.shape[2], frames.shape[1], name)
        indices = self.indices(len(frames), fps, name)
        return SampledVideo(frames[indices], self.timestamps(indices, DEFAULT_FPS if fps is None else fps), name)

    def _decode(self, source: Path | bytes, name: str) -> SampledVideo:
        # PyAV is loaded here: text, images and frames that are given need none, nor does an export.
        from ernie_export.runtime.preprocess.video_decode import decode_video

        def choose(total: int, rate: float | None, times: NDArray[np.float64] | None) -> NDArray[np.int32]:
            indices = self.indices(total, rate, name)
            return indices if times is None or len(indices) >= len(times) else _indices_by_time(times, len(indices))

        decoded = decode_video(source, name, choose, self.limits)
        seconds = decoded.seconds or self.timestamps(decoded.indices, decoded.rate)
        return SampledVideo(decoded.frames, seconds, name)

    def decode(self, source: VideoSource | SampledVideo, fps: float | None = None, name: str = "") -> Planes:
        """Load, stamp and resize one video. Raises InvalidMedia as `load` and `resize` do."""
        return self.resize(self.load(source, fps, name))

    def resize(self, video: SampledVideo) -> Planes:
        """Draw the timestamps and resize to the model's size; return uint8 (frames, 3, height, width).

        Raises InvalidMedia for an aspect ratio above 200 and for frames too small to draw on.
        """
        size = pixels.target_size(video.frames.shape[1], video.frames.shape[2], self.settings, video.name)
        out = np.empty((len(video.frames), CHANNELS, *size), dtype=np.uint8)
        # A file trimmed by an edit list has fewer frames than its header says, and so than there are timestamps.
        for index, (frame, second) in enumerate(zip(video.frames, video.timestamps, strict=False)):
            if self.font is not None:
                frame = _draw(frame, label(second), self.font, video.name)
            planes = np.ascontiguousarray(frame.transpose(2, 0, 1))
            out[index] = resize_bicubic(planes, *size) if self.settings.do_resize else planes
        return out

    def pack(self, videos: Sequence[Planes]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Even out the count of frames, normalise and cut into patches.

        Returns pixel_values_videos float32 (patches, 3·patch²), frame after frame and video after video, and
        video_grid_thw int64 (videos, 3) with rows (frames, rows of patches, columns of patches). The last frame of an
        odd count is repeated.
        """
        return pixels.pack(videos, self.table, self.settings, multiple=TEMPORAL_PATCH)

    def __call__(self, videos: list[SampledVideo]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Draw timestamps, resize, normalise and cut into patches; see `resize` and `pack`."""
        return self.pack([self.resize(video) for video in videos])


def _find_font(section: JsonObject) -> Path | None:
    """Return the font of the timestamps, or None where none are drawn. Raises InvalidFile if it is no font."""
    name = timestamp_font(section)
    if name is None:
        return None
    font = section.path.parent / name
    try:
        ImageFont.truetype(font, 100).getmask(label(12345.67))
    except Exception as e:  # FreeType loads more than it can draw, and Pillow has limits of its own
        raise InvalidFile(font, "the font that timestamps are drawn with", e) from e
    return font


def _indices_by_time(times: NDArray[np.float64], count: int) -> NDArray[np.int32]:
    """Return the frames that are shown at `count` moments at equal distances, each frame once.

    The reference takes every n-th frame, which are no such moments where the frame rate varies.

    Args:
        times: When each frame is shown, ascending.
        count: Moments, fewer than there are frames.
    """
    span = (times[-1] - times[0]) * len(times) / (len(times) - 1)  # as though the last were shown for the mean time
    moments = times[0] + np.arange(count) * (span / count)
    return np.unique(np.searchsorted(times, moments + 1e-6, side="right") - 1).astype(np.int32)


def label(second: float) -> str:
    """Return the text drawn on a frame: hours, minutes and seconds with two decimals."""
    hours, rest = second // 3600, second % 3600
    return f"time: {int(hours):02d}:{int(rest // 60):02d}:{rest % 60:05.02f}"


@functools.lru_cache(maxsize=8)
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _draw(frame: NDArray[np.uint8], text: str, font: Path, name: str) -> NDArray[np.uint8]:
    """Draw black text outlined in white in the top left corner, a tenth of the shorter side high.

    Raises InvalidMedia for frames that are too small, InvalidFile for a font that cannot be drawn.
    """
    image = Image.fromarray(frame)
    size = int(min(image.size) * 0.1)
    if size < 1:
        raise InvalidMedia(name, "frames of at least 10 pixels a side", f"{image.width}×{image.height}")
    stroke = int(size * 0.1)
    draw = ImageDraw.Draw(image)
    try:
        draw.text(
            (0, 0), text, font=_font(font, size), fill=(0, 0, 0), stroke_width=stroke, stroke_fill=(255, 255, 255)
        )
    except Exception as e:  # glyphs that FreeType loads, but cannot draw, and Pillow's limits
        raise InvalidFile(font, "the font that timestamps are drawn with", e) from e
    return np.asarray(image)


def _stack(source: NDArray[np.uint8] | Sequence[Image.Image | NDArray[np.uint8]], name: str) -> NDArray[np.uint8]:
    """Return uint8 (frames, height, width, 3) from an array or a list of frames."""
    if isinstance(source, np.ndarray):
        frames = source
    else:
        if len(source) == 0:
            raise InvalidMedia(name, "a video with frames", "none")
        arrays = [np.asarray(f.convert("RGB")) if isinstance(f, Image.Image) else np.asarray(f) for f in source]
        if len({array.shape for array in arrays}) > 1:
            raise InvalidMedia(name, "frames of one size", sorted({array.shape for array in arrays}))
        frames = np.stack(arrays)
    if frames.ndim != 4 or frames.shape[3] != CHANNELS or frames.dtype != np.uint8 or 0 in frames.shape[1:]:
        raise InvalidMedia(name, f"uint8 (frames, height, width, {CHANNELS})", f"{frames.dtype} {frames.shape}")
    return frames
