"""Decode sampled frames of a video file with PyAV, within limits that are checked before anything is decoded."""

import errno
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from ernie_export.common.errors import InvalidMedia, UserError
from ernie_export.runtime.preprocess.orientation import upright
from ernie_export.runtime.preprocess.video_limits import DEFAULT_FPS, DecodeLimits
from ernie_export.runtime.preprocess.video_packets import find_stream, read_packets

# Containers alone are read: not the demuxers that follow references to other files and addresses (hls, dash, concat,
# image2, ...), and not raw streams, which say nothing of their length.
CONTAINERS = "mov,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif"
OPTIONS_FOR_FILES = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
# Bytes come from whoever sent them: no file may be opened on their word.
OPTIONS_FOR_BYTES = {"protocol_whitelist": "none", "format_whitelist": CONTAINERS}
# Frame indices to take, from the number of frames, the frame rate, and the frames' times where the rate varies.
ChooseFrames = Callable[[int, float | None, NDArray[np.float64] | None], NDArray[np.int32]]


@dataclass(frozen=True)
class DecodedFrames:
    """Sampled frames of a file, turned upright.

    Attributes:
        frames: uint8 (frames, height, width, 3) in RGB.
        indices: Their places in the video.
        rate: Frames a second.
        seconds: When each is shown, from the first frame on; None for a constant rate, by which it follows.
    """

    frames: NDArray[np.uint8]
    indices: NDArray[np.int32]
    rate: float
    seconds: tuple[float, ...] | None = None


def decode_video(
    source: Path | bytes,
    name: str,
    choose_frames: ChooseFrames,
    limits: DecodeLimits,
    options_for_bytes: Mapping[str, str] = OPTIONS_FOR_BYTES,
) -> DecodedFrames:
    """Decode the chosen frames of a video file.

    Args:
        source: The file or its bytes.
        name: The video, for error messages.
        choose_frames: Returns ascending indices of the frames to take.
        limits: What the video may have.
        options_for_bytes: FFmpeg's options where `source` is bytes.

    Raises:
        InvalidMedia: The video cannot be read or decoded, is truncated, exceeds a limit or has no video stream.
    """
    try:
        with _open(source, name, options_for_bytes) as container:
            stream = find_stream(container, name)
            limits.check_frame(stream.width, stream.height, name)
            # The codec's own data may announce larger frames than the container does, and later ones.
            stream.codec_context.options = {"max_pixels": str(limits.max_source_pixels)}
            decoder = stream.codec_context.name
            if limits.decoders and decoder not in limits.decoders.split(","):
                raise InvalidMedia(name, f"a video in one of {limits.decoders}", decoder)
            if stream.frames > limits.max_source_frames:  # some containers state the number: refused without reading on
                limits.check_length(stream.frames, DEFAULT_FPS, name)
            with _open(source, name, options_for_bytes) as again:
                packets = read_packets(again, stream.index, limits.deadline, name)
            total = stream.frames or packets.count
            stated = stream.average_rate or stream.guessed_rate
            rate = float(stated) if stated else None
            limits.check_length(total, rate or DEFAULT_FPS, name)
            varying = packets.times if rate is not None and packets.vary_from(rate) else None
            indices = choose_frames(total, rate, varying)
            limits.check_sampled(len(indices), stream.width, stream.height, name)
            container.seek(0)
            frames = _take_frames(container, stream, indices, name, limits)
    except UserError:
        raise
    except Exception as e:  # damaged data raises FFmpeg's errors, and others from the bindings above them
        raise InvalidMedia(name, "a video that can be decoded", _reason(e)) from e
    seconds = None if varying is None else tuple((varying[indices] - varying[0]).tolist())
    return DecodedFrames(frames, indices, rate or DEFAULT_FPS, seconds)


def _open(source: Path | bytes, name: str, options_for_bytes: Mapping[str, str]) -> av.container.InputContainer:
    """Open a container. Raises InvalidMedia for a file that is none, or one of those that are not read."""
    try:
        if isinstance(source, bytes):
            return av.open(io.BytesIO(source), "r", options=dict(options_for_bytes))
        return av.open(str(source), "r", options=OPTIONS_FOR_FILES)
    except av.FFmpegError as e:
        other = e.errno in (errno.EPERM, errno.EINVAL)  # what FFmpeg says of a format that is not on the list
        found = "a file of another format" if other else _reason(e)
        raise InvalidMedia(name, f"a video file ({CONTAINERS})", found) from e


def _take_frames(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    indices: NDArray[np.int32],
    name: str,
    limits: DecodeLimits,
) -> NDArray[np.uint8]:
    """Decode up to the last index and return the frames at `indices`, uint8 (frames, height, width, 3) in RGB.

    The decoder's own frame size counts, not the container's, which may be wrong or a lie.

    Raises InvalidMedia where the file ends early, frames differ in size, a limit is exceeded, or the deadline has
    passed. A video trimmed by an edit list also has fewer frames than its header says, since some are marked to be
    skipped: fewer are returned, as in the reference.
    """
    wanted = set(indices.tolist())
    last = int(indices[-1])
    frames = np.empty((0, 0, 0, 3), np.uint8)
    taken = decoded = 0
    for index, frame in enumerate(container.decode(stream)):
        if index > last:
            break
        decoded += 1
        if time.monotonic() > limits.deadline:
            raise InvalidMedia(name, f"{last + 1} frames to be decoded in time", f"time for {decoded}")
        if index not in wanted:
            continue
        if not taken:
            limits.check_frame(frame.width, frame.height, name)
            limits.check_sampled(len(wanted), frame.width, frame.height, name)
        pixels = upright(frame)
        if not taken:
            frames = np.empty((len(wanted), *pixels.shape), np.uint8)
        elif pixels.shape != frames.shape[1:]:
            sizes = f"{frames.shape[2]}×{frames.shape[1]} and {pixels.shape[1]}×{pixels.shape[0]}"
            raise InvalidMedia(name, "frames of one size", sizes)
        frames[taken] = pixels
        del pixels  # not held while the next is decoded
        taken += 1
    if taken < len(wanted):
        skipped = sum(entry.is_discard for entry in stream.index_entries)
        if not taken or decoded + skipped <= last:
            raise InvalidMedia(name, f"at least {last + 1} frames", decoded, hint="the video is truncated")
    return frames[:taken]


def _reason(error: Exception) -> str:
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text or type(error).__name__
