"""What a video's packets say without being decoded: when each frame is shown, and whether the file was cut off."""

import time
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray

from ernie_export.common.errors import InvalidMedia

HEADER_DURATIONS = ("matroska", "flv")  # formats that state their length first, so that a file cut off shows
CUT_SECONDS = 0.5  # that the packets may end before the stated length
ATTACHED_PICTURE = av.stream.Disposition.attached_pic


@dataclass(frozen=True)
class Packets:
    """The packets of a video stream.

    Attributes:
        count: Frames, those that an edit list leaves out among them.
        times: float64 (frames,), ascending: when each frame is shown, in seconds; empty where the file does not say.
    """

    count: int
    times: NDArray[np.float64]

    def vary_from(self, rate: float) -> bool:
        """Return whether a frame is shown half a frame or more from its place at a constant `rate`."""
        if not len(self.times):
            return False
        places = self.times[0] + np.arange(len(self.times)) / rate
        return bool(np.abs(self.times - places).max() >= 0.5 / rate)


def find_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """Return the video stream that FFmpeg would show. Raises InvalidMedia where there is none, or a cover alone."""
    stream = container.streams.best("video")
    if stream is None or not isinstance(stream, av.VideoStream):
        raise InvalidMedia(name, "a video", "no video stream")
    if stream.disposition & ATTACHED_PICTURE:
        raise InvalidMedia(name, "a video", "no video stream, and a cover picture")
    if stream.codec_context is None:  # a file cut before the stream's description is complete
        raise InvalidMedia(name, "a video that can be decoded", "no known codec")
    return stream


def read_packets(container: av.container.InputContainer, index: int, deadline: float, name: str) -> Packets:
    """Read the packets of the stream at `index`.

    Args:
        container: A container that nothing has been read from.
        index: Place of the stream among all streams.
        deadline: Time by `time.monotonic()` at which reading is given up.
        name: The video, for error messages.

    Raises:
        InvalidMedia: The packets end well before the length that the header states, or the deadline has passed.
    """
    count = 0
    shown: list[float | None] = []
    end = 0.0
    for packet in container.demux():
        if time.monotonic() > deadline:
            raise InvalidMedia(name, "packets to be read in time", f"time for {count}")
        if not packet.size or packet.time_base is None:
            continue
        moment = None if packet.pts is None else float(packet.pts * packet.time_base)
        if moment is not None:
            end = max(end, moment + float((packet.duration or 0) * packet.time_base))
        if packet.stream.index == index:
            count += 1
            if not packet.is_discard:
                shown.append(moment)
    stated = (container.duration or 0) / av.time_base
    if container.format.name.startswith(HEADER_DURATIONS) and stated - end > max(CUT_SECONDS, 2 * end / max(count, 1)):
        raise InvalidMedia(name, f"{stated:g} seconds", f"{end:g}", hint="the video is truncated")
    times = [moment for moment in shown if moment is not None]
    return Packets(count, np.sort(np.array(times if len(times) == len(shown) else [], np.float64)))
