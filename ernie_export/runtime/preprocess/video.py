"""Clips: from a file or a list of frames to the patches that the vision encoder takes.

Bit-identical to `Ernie4_5_VLMoeVideoProcessor` after `load_video(..., backend="pyav")` with the processor's sampling:
sample, draw a timestamp on each frame, repeat the last frame of an odd count, resize, normalise, cut into patches.
"""

import functools
import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ernie_export.common.errors import InvalidMedia, UserError
from ernie_export.runtime.preprocess import pixels, settings
from ernie_export.runtime.preprocess.resample import resize_bicubic
from ernie_export.runtime.preprocess.settings import CHANNELS, PixelSettings, Section

FILE = "video_preprocessor_config.json"
TEMPORAL_PATCH = 2  # the class refuses every other value
DEFAULT_FPS = 24  # what the reference assumes where a clip has no rate
_DEFAULT_SIZE = (299 * 28 * 28, 1196 * 28 * 28)
_KEYS = {"do_sample_frames", "fps", "num_frames", "min_frames", "max_frames", "draw_on_frames", "font"}

# A playlist or description file must not make FFmpeg open addresses.
_OPTIONS = {"protocol_whitelist": "file"}
# Bytes come from whoever sent them: no other file may be opened on their word, and containers alone are read, not the
# demuxers that follow references (hls, dash, concat, image2, ...).
_OPTIONS_FOR_BYTES = {"protocol_whitelist": "none", "format_whitelist": "mov,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif"}

VideoSource = str | Path | bytes | NDArray[np.uint8] | Sequence[Image.Image | NDArray[np.uint8]]


@dataclass(frozen=True)
class SampledVideo:
    """Sampled frames, uint8 (frames, height, width, 3) in RGB, and the second that each shows."""

    frames: NDArray[np.uint8]
    timestamps: tuple[float, ...]
    name: str = "the given clip"


@dataclass(frozen=True)
class VideoProcessor:
    """The settings of a checkpoint's video processor, and the table from pixel value to model input."""

    settings: PixelSettings
    table: pixels.Table
    sample: bool
    fps: float | None
    num_frames: int | None
    min_frames: int
    max_frames: int
    font: Path | None  # None: timestamps are not drawn
    max_source_pixels: int = pixels.MAX_SOURCE_PIXELS  # of a frame
    max_source_frames: float = math.inf  # of a clip, before sampling
    max_source_seconds: float = math.inf
    max_sampled_pixels: float = math.inf  # of a clip's sampled frames, which are held together
    deadline: float = math.inf  # by time.monotonic(): when decoding is given up

    @classmethod
    def from_folder(cls, folder: Path) -> "VideoProcessor":
        """Read video_preprocessor_config.json, or `video_processor` of processor_config.json, and find the font.

        Raises UserError for a missing file, a key we do not know, or a value we do not implement.
        """
        path, values = settings.processor_section(Path(folder), "video_processor", FILE)
        section = Section(path, values)
        section.check_keys(_KEYS)
        if section.whole("temporal_patch_size", TEMPORAL_PATCH) != TEMPORAL_PATCH:
            raise section.fail("temporal_patch_size", str(TEMPORAL_PATCH))
        shared = section.pixels(_DEFAULT_SIZE, (settings.BICUBIC,))
        if not (shared.do_rescale or shared.do_normalize):
            raise section.fail("do_rescale", "true where do_normalize is false")
        fps, num_frames = section.number("fps", None), section.whole("num_frames", None)
        least, most = section.whole("min_frames", 16), section.whole("max_frames", 180)
        assert least is not None and most is not None  # they have defaults
        if fps is not None and num_frames is not None:
            raise section.fail("fps", "null where num_frames is set")
        if num_frames is not None and not least <= num_frames <= most:
            raise section.fail("num_frames", f"min_frames {least} to max_frames {most}")
        font = None
        if section.flag("draw_on_frames", True):
            name = section.get("font", "Roboto-Regular.ttf")
            if not isinstance(name, str) or Path(name).name != name:
                raise section.fail("font", "the name of a file in the same folder")
            font = path.parent / name
            try:
                ImageFont.truetype(font)
            except OSError as e:
                raise UserError(f"{font}: expected the font that timestamps are drawn with, found {e}") from e
        return cls(
            settings=shared,
            table=pixels.video_table(shared),
            sample=section.flag("do_sample_frames", True),
            fps=fps,
            num_frames=num_frames,
            min_frames=least,
            max_frames=most,
            font=font,
        )

    def indices(self, total: int, rate: float | None, name: str) -> NDArray[np.int32]:
        """Which frames of a clip of `total` frames at `rate` a second are taken, ascending.

        `min_frames` is a floor on the sampling, not a pad: a shorter clip is taken whole. The step is multiplied in
        float64, rounded to float32 and truncated, as `torch.arange(0, total, step).int()` does. Raises UserError for a
        clip with no frames, one shorter than `num_frames`, or one without a rate where the settings sample by `fps`.
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
        """Seconds from the start for each index; float32 quotients after sampling, float64 without, as the reference's.

        (Sampled indices are a torch tensor there, and a tensor over a Python float is float32.)
        """
        if not self.sample:
            return tuple(int(index) / rate for index in indices)
        return tuple(float(second) for second in indices.astype(np.float32) / np.float32(rate))

    def load(self, source: VideoSource | SampledVideo, fps: float | None = None, name: str = "") -> SampledVideo:
        """Decode a file (path or its bytes), or take frames as they are, and sample.

        Frames are a uint8 array (frames, height, width, 3) or a list of Pillow images or such arrays without the first
        axis, at `fps` a second (24 where not given, as in the reference). Of a file only the sampled frames are held.
        `name`: of what is no path, in errors.

        Raises UserError for a file that is missing, empty, unreadable, truncated or without video, for one past a
        limit, before it is decoded, and for frames of unequal size.
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
        self._check_pixels(frames.shape[2], frames.shape[1], name)
        indices = self.indices(len(frames), fps, name)
        return SampledVideo(frames[indices], self.timestamps(indices, DEFAULT_FPS if fps is None else fps), name)

    def _check_pixels(self, width: int, height: int, name: str) -> None:
        if width * height > self.max_source_pixels:
            limit = self.max_source_pixels
            raise InvalidMedia(name, f"at most {limit} pixels a frame", f"{width}×{height}")

    def _check_length(self, frames: int, rate: float, name: str) -> None:
        if frames > self.max_source_frames:
            raise InvalidMedia(name, f"at most {self.max_source_frames} frames", frames)
        if frames / rate > self.max_source_seconds:
            raise InvalidMedia(name, f"at most {self.max_source_seconds:g} seconds", f"{frames / rate:.1f}")

    def _decode(self, source: Path | bytes, name: str) -> SampledVideo:
        try:
            with _open(source) as container:
                if not container.streams.video:
                    raise InvalidMedia(name, "a video", "no video stream")
                stream = container.streams.video[0]
                if stream.codec_context is None:  # a file cut before the stream's description is complete
                    raise InvalidMedia(name, "a video that can be decoded", "no known codec")
                self._check_pixels(stream.width, stream.height, name)
                # The codec's own data may announce larger frames than the container does, and later ones.
                stream.codec_context.options = {"max_pixels": str(self.max_source_pixels)}
                total = stream.frames or _count(source)  # some containers do not state it
                rate = stream.average_rate or stream.guessed_rate
                self._check_length(total, float(rate or DEFAULT_FPS), name)
                indices = self.indices(total, float(rate) if rate else None, name)
                if len(indices) * stream.width * stream.height > self.max_sampled_pixels:
                    found = f"{len(indices)} of {stream.width}×{stream.height}"
                    raise InvalidMedia(
                        name, f"sampled frames of at most {self.max_sampled_pixels} pixels together", found
                    )
                container.seek(0)
                frames = _take(container, indices, name, self.deadline)
        except UserError:
            raise
        except Exception as e:  # damaged data raises FFmpeg's errors, and others from the bindings above them
            raise InvalidMedia(name, "a video that can be decoded", _reason(e)) from e
        return SampledVideo(np.stack(frames), self.timestamps(indices, float(rate) if rate else DEFAULT_FPS), name)

    def __call__(self, clips: list[SampledVideo]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Draw timestamps, even out the count, resize, normalise and cut into patches.

        Returns pixel_values_videos float32 (patches, 3·patch²), frame after frame and clip after clip, and
        video_grid_thw int64 (clips, 3) with rows (frames, rows of patches, columns of patches). Raises UserError for an
        aspect ratio above 200 and for frames too small to draw on.
        """
        patch = self.settings.patch_size
        shapes = [clip.frames.shape for clip in clips]
        sizes = [pixels.target_size(s[1], s[2], self.settings, c.name) for s, c in zip(shapes, clips, strict=True)]
        grids = np.array(
            [
                (len(clip.frames) + len(clip.frames) % 2, h // patch, w // patch)
                for clip, (h, w) in zip(clips, sizes, strict=True)
            ],
            dtype=np.int64,
        ).reshape(-1, 3)
        out = np.empty((int(grids.prod(axis=1).sum()), CHANNELS * patch * patch), dtype=np.float32)
        start = 0
        for clip, (height, width), grid in zip(clips, sizes, grids, strict=True):
            rows = int(grid[1] * grid[2])
            for frame, second in zip(clip.frames, clip.timestamps, strict=False):
                if self.font is not None:
                    frame = _draw(frame, label(second), self.font, clip.name)
                planes = np.ascontiguousarray(frame.transpose(2, 0, 1))
                if self.settings.do_resize:
                    planes = resize_bicubic(planes, height, width)
                pixels.write_patches(planes, self.table, self.settings, out[start : start + rows])
                start += rows
            if len(clip.frames) % 2:
                out[start : start + rows] = out[start - rows : start]
                start += rows
        return out, grids


def label(second: float) -> str:
    """The text drawn on a frame: hours, minutes and seconds with two decimals."""
    hours, rest = second // 3600, second % 3600
    return f"time: {int(hours):02d}:{int(rest // 60):02d}:{rest % 60:05.02f}"


@functools.lru_cache(maxsize=8)
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _draw(frame: NDArray[np.uint8], text: str, font: Path, name: str) -> NDArray[np.uint8]:
    """Black text outlined in white in the top left corner; its height is a tenth of the shorter side."""
    image = Image.fromarray(frame)
    size = int(min(image.size) * 0.1)
    if size < 1:
        raise InvalidMedia(name, "frames of at least 10 pixels a side", f"{image.width}×{image.height}")
    ImageDraw.Draw(image).text(
        (0, 0), text, font=_font(font, size), fill=(0, 0, 0), stroke_width=int(size * 0.1), stroke_fill=(255, 255, 255)
    )
    return np.asarray(image)


def _open(source: Path | bytes) -> av.container.InputContainer:
    if isinstance(source, bytes):
        return av.open(io.BytesIO(source), "r", options=_OPTIONS_FOR_BYTES)
    return av.open(str(source), "r", options=_OPTIONS)


def _count(source: Path | bytes) -> int:
    """The packets of the first video stream, one a frame, without decoding them."""
    with _open(source) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size)


def _take(
    container: av.container.InputContainer, indices: NDArray[np.int32], name: str, deadline: float
) -> list[NDArray[np.uint8]]:
    """Decode up to the last index and keep the frames asked for, in RGB.

    Raises UserError where the file ends early, or the deadline has passed. A clip trimmed by an edit list also has
    fewer frames than its header says, being told to skip some: then there are fewer frames, as in the reference.
    """
    wanted, last = set(indices.tolist()), int(indices[-1])
    frames: list[NDArray[np.uint8]] = []
    decoded = 0
    for index, frame in enumerate(container.decode(video=0)):
        if index > last:
            break
        decoded += 1
        if time.monotonic() > deadline:
            raise InvalidMedia(name, f"{last + 1} frames to be decoded in time", f"time for {decoded}")
        if index in wanted:
            frames.append(frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False))
            if frames[-1].shape != frames[0].shape:
                raise InvalidMedia(name, "frames of one size", f"{frames[0].shape} and {frames[-1].shape}")
    if len(frames) < len(wanted):
        skipped = sum(entry.is_discard for entry in container.streams.video[0].index_entries)
        if not frames or decoded + skipped <= last:
            raise InvalidMedia(name, f"at least {last + 1} frames", decoded, hint="the video is truncated")
    return frames


def _stack(source: NDArray[np.uint8] | Sequence[Image.Image | NDArray[np.uint8]], name: str) -> NDArray[np.uint8]:
    """uint8 (frames, height, width, 3) from an array or a list of frames."""
    if isinstance(source, np.ndarray):
        frames = source
    else:
        if len(source) == 0:
            raise InvalidMedia(name, "a video with frames", "none")
        arrays = [np.asarray(f.convert("RGB")) if isinstance(f, Image.Image) else np.asarray(f) for f in source]
        if len({array.shape for array in arrays}) > 1:
            raise InvalidMedia(name, "frames of one size", f"{sorted({a.shape for a in arrays})}")
        frames = np.stack(arrays)
    if frames.ndim != 4 or frames.shape[3] != CHANNELS or frames.dtype != np.uint8 or 0 in frames.shape[1:]:
        found = f"{frames.dtype} {frames.shape}"
        raise InvalidMedia(name, f"uint8 (frames, height, width, {CHANNELS})", found)
    return frames


def _reason(error: Exception) -> str:
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text or type(error).__name__
