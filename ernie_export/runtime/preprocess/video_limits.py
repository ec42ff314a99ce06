"""What a video may have to be decoded; known without PyAV, which is loaded with the first video file."""

import math
from dataclasses import dataclass

from ernie_export.common.errors import InvalidMedia
from ernie_export.common.image_sizes import MAX_IMAGE_PIXELS

DEFAULT_FPS = 24  # what the reference assumes where a video has no frame rate
# Decoders for what phones, cameras and browsers write. FFmpeg has hundreds more, rarely used and less tried.
UNTRUSTED_DECODERS = "h264,hevc,vp8,vp9,libvpx,libvpx-vp9,av1,libdav1d,mpeg4,mpeg1video,mpeg2video,mjpeg,gif,theora"


@dataclass(frozen=True)
class DecodeLimits:
    """What a video may have, and how long its decoding may take.

    Attributes:
        max_source_pixels: Most pixels of a frame.
        max_source_frames: Most frames before sampling.
        max_source_seconds: Longest duration.
        max_sampled_pixels: Most pixels of all sampled frames, which are held together.
        deadline: Time by `time.monotonic()` at which decoding is given up.
        decoders: FFmpeg's names of the decoders that may be used, with commas; empty for all.
    """

    max_source_pixels: int = MAX_IMAGE_PIXELS
    max_source_frames: float = math.inf
    max_source_seconds: float = math.inf
    max_sampled_pixels: float = math.inf
    deadline: float = math.inf
    decoders: str = ""

    def check_frame(self, width: int, height: int, name: str) -> None:
        """Raise InvalidMedia for a frame with too many pixels."""
        if width * height > self.max_source_pixels:
            raise InvalidMedia(name, f"at most {self.max_source_pixels} pixels a frame", f"{width}×{height}")

    def check_length(self, frames: int, rate: float, name: str) -> None:
        """Raise InvalidMedia for a video of too many frames, or too long at `rate` frames a second."""
        if frames > self.max_source_frames:
            raise InvalidMedia(name, f"at most {self.max_source_frames} frames", frames)
        if frames / rate > self.max_source_seconds:
            raise InvalidMedia(name, f"at most {self.max_source_seconds:g} seconds", f"{frames / rate:.1f}")

    def check_sampled(self, frames: int, width: int, height: int, name: str) -> None:
        """Raise InvalidMedia for sampled frames with too many pixels together."""
        if frames * width * height > self.max_sampled_pixels:
            expected = f"sampled frames of at most {self.max_sampled_pixels} pixels together"
            raise InvalidMedia(name, expected, f"{frames} of {width}×{height}")
