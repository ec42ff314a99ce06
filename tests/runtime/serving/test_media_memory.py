"""The most memory that decoding takes at the default limits: every kind of image and video at its worst, two at a time.

The figures of docs/guides/serving.md and docker/compose.yaml follow from the bounds here.
"""

import io
import math
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ernie_export.runtime.preprocess import Preprocessor
from ernie_export.runtime.serving.media_limits import MediaLimits
from ernie_export.runtime.serving.media_pool import MediaPool, PooledDecoder
from ernie_export.runtime.serving.untrusted_media import limit_media
from tests.paths import MINI

LIMITS = MediaLimits()
GIB = 2**30
IMAGE_BOUND = GIB  # resident, of one worker, the interpreter and libraries included
VIDEO_BOUND = 2.5 * GIB
SIDE = math.isqrt(LIMITS.max_image_pixels)
FRAMES = 6  # that the small checkpoint samples
FRAME_SIDE = math.isqrt(LIMITS.max_pixels // FRAMES) // 2 * 2


def saved(mode: str, form: str, **options: object) -> Callable[[], bytes]:
    """Return a function that makes an image of the most pixels in a mode of Pillow's."""

    def make() -> bytes:
        buffer = io.BytesIO()
        Image.new(mode, (SIDE, SIDE)).save(buffer, form, **options)
        return buffer.getvalue()

    return make


def turned() -> Image.Exif:
    """Return the tag of an image that has to be turned by a quarter."""
    exif = Image.Exif()
    exif[0x112] = 6
    return exif


def run_length_bmp() -> bytes:
    """Return a BMP compressed as runs of pixels (RLE8), which Pillow does not write."""
    row = b"".join(bytes((min(SIDE - start, 255), 1)) for start in range(0, SIDE, 255)) + b"\0\0"
    data = row * SIDE + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 8, 1, len(data), 0, 0, 256, 0)
    offset = 14 + len(header) + 1024
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + header + bytes(1024) + data


def video(codec: str, form: str, pixels: str, options: dict[str, str]) -> Callable[[], bytes]:
    """Return a function that makes a video of as many pixels as may be sampled."""

    def make() -> bytes:
        file = io.BytesIO()
        with av.open(file, "w", format=form) as container:
            stream = container.add_stream(codec, rate=2)
            assert isinstance(stream, av.VideoStream)
            stream.width = stream.height = FRAME_SIDE
            stream.pix_fmt = pixels
            stream.options = dict[str, object](options)
            gray = np.full((FRAME_SIDE, FRAME_SIDE, 3), 90, np.uint8)
            frame = av.VideoFrame.from_ndarray(gray, format="rgb24").reformat(format=pixels)
            for number in range(FRAMES):
                frame.pts = number
                frame.time_base = Fraction(1, 2)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return file.getvalue()

    return make


IMAGES = {
    "PNG with alpha": saved("RGBA", "PNG", compress_level=1),
    "PNG of 16 bits": saved("I;16", "PNG", compress_level=1),
    "PNG with a transparent color": saved("P", "PNG", compress_level=1, transparency=0),
    "PNG of one bit": saved("1", "PNG", compress_level=1),
    "JPEG in CMYK": saved("CMYK", "JPEG", quality=1),
    "progressive JPEG, turned": saved("RGB", "JPEG", quality=1, progressive=True, exif=turned()),
    "WebP": saved("RGB", "WEBP", quality=1),
    "WebP without loss, with alpha": saved("RGBA", "WEBP", lossless=True, quality=0),
    "GIF": saved("P", "GIF"),
    "GIF with a transparent color": saved("P", "GIF", transparency=0),
    "BMP of one bit": saved("1", "BMP"),
    "BMP of runs": run_length_bmp,
}
VIDEOS = {"MJPEG": video("mjpeg", "mov", "yuvj444p", {}), "MJPEG again": video("mjpeg", "mov", "yuvj444p", {})}


class Workers:
    """Two workers as ernie-serve has them, and the most memory that one and that both have held."""

    def __init__(self, folder: Path) -> None:
        self.preprocessor = Preprocessor.from_folder(folder)
        self.pool = MediaPool(folder, workers=2, memory=LIMITS.worker_memory)
        self.pool.start()
        self.worst_of_one = 0
        self.worst_of_both = 0
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._sample)
        self._watch.start()

    def decode(self, kind: str, data: bytes) -> tuple[int, ...]:
        """Decode a file as one of a request's own; return the shape of its pixels."""
        limited = limit_media(self.preprocessor, LIMITS, 1, math.inf)
        decoder = PooledDecoder(self.pool, limited.images, limited.videos, 600.0, 600.0, math.inf, lambda: False)
        return (decoder.image(data, "it") if kind == "image" else decoder.video(data, None, "it")).shape

    def close(self) -> None:
        """End the workers."""
        self._stop.set()
        self._watch.join()
        self.pool.close()

    def _sample(self) -> None:
        while not self._stop.is_set():
            resident = [self._resident(worker._process.pid) for worker in list(self.pool._running)]
            self.worst_of_one = max(self.worst_of_one, *resident, 0)
            self.worst_of_both = max(self.worst_of_both, sum(resident))
            time.sleep(0.005)

    @staticmethod
    def _resident(pid: int) -> int:
        try:
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        except OSError:
            return 0


@pytest.fixture
def workers():
    started = Workers(MINI)
    yield started
    started.close()


def decode_all(workers: Workers, kind: str, makers: dict[str, Callable[[], bytes]]) -> None:
    with ThreadPoolExecutor(2) as threads:
        shapes = list(threads.map(lambda make: workers.decode(kind, make()), makers.values()))
    assert all(shape[1] == 3 for shape in shapes)


def test_every_kind_of_image_at_its_worst(workers):
    decode_all(workers, "image", IMAGES)
    assert GIB // 2 < workers.worst_of_one < IMAGE_BOUND
    assert workers.worst_of_both < 2 * IMAGE_BOUND


def test_videos_at_their_worst(workers):
    """Beside each other; a worker's limit is on addresses, of which what is resident is a part."""
    decode_all(workers, "video", VIDEOS)
    assert GIB < workers.worst_of_one < VIDEO_BOUND < LIMITS.worker_memory
    assert workers.worst_of_both < 2 * VIDEO_BOUND
