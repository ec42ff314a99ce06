"""A process that decodes images and videos of untrusted requests, one at a time; `media_pool` starts and ends it.

    python -m ernie_export.runtime.serving.media_worker BUNDLE MEMORY_BYTES

It announces itself with an empty JSON object in a line. Then it reads requests from standard input, each a line of JSON
and as many bytes as the line says, and answers each on standard output:

| message | line | bytes |
| --- | --- | --- |
| request | {"kind": "image" or "video", "name", "bytes", "limits", "bounds", "sampling"} | the file |
| answer | {"shape": [frames, 3, height, width]} | uint8 pixels, resized to the model's size |
| refusal | {"invalid": {"field", "expected", "found", "hint"}}: an InvalidMedia | none |

"limits" are the fields of the limits of its kind, "bounds" the fewest and the most pixels after resizing, "sampling"
the fields SAMPLING of the processor of a video.

It may neither write files nor use more memory than it was given, and it ends with the process that started it.
"""

import ctypes
import errno
import json
import os
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ernie_export.common.errors import InvalidMedia
from ernie_export.common.processor_settings import PixelBounds
from ernie_export.runtime.preprocess import video_decode  # noqa: F401  (PyAV, before memory is limited)
from ernie_export.runtime.preprocess.image import ImageProcessor
from ernie_export.runtime.preprocess.pixels import Planes
from ernie_export.runtime.preprocess.video import VideoProcessor
from ernie_export.runtime.preprocess.video_limits import DecodeLimits

SAMPLING = ("sample", "fps", "num_frames", "min_frames", "max_frames")  # fields of VideoProcessor
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Answer requests until standard input ends."""
    bundle = Path(sys.argv[1])
    images = ImageProcessor.from_folder(bundle)
    videos = VideoProcessor.from_folder(bundle)
    memory = int(sys.argv[2])
    restrict(memory)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    send(answers, {})
    requests = sys.stdin.buffer
    for line in requests:
        request = json.loads(line)
        data = requests.read(request["bytes"])
        try:
            planes = decode_within(memory, request, data, images, videos)
        except InvalidMedia as e:
            send(answers, {"invalid": {"field": e.field, "expected": e.expected, "found": e.found, "hint": e.hint}})
        else:
            send(answers, {"shape": planes.shape}, planes)


def lacks_memory(error: BaseException | None) -> bool:
    """Return whether an error was caused by memory, or by a thread, that the system did not give."""
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in (errno.ENOMEM, errno.EAGAIN):
            return True
        error = error.__cause__
    return False


def out_of_memory(name: str, memory: int, found: str) -> InvalidMedia:
    """Return the refusal of a file that needs more than a worker's `memory` bytes, or may do so."""
    return InvalidMedia(name, f"media that can be decoded in {memory / 2**30:.3g} GiB of memory", f"that {found}")


def decode_within(
    memory: int, request: dict[str, Any], data: bytes, images: ImageProcessor, videos: VideoProcessor
) -> Planes:
    """Decode one file. Raises InvalidMedia, which names `memory` where that did not suffice."""
    try:
        return decode(request, data, images, videos)
    except (InvalidMedia, MemoryError) as e:
        if lacks_memory(e):
            raise out_of_memory(request["name"], memory, "more is needed") from e
        raise


def decode(request: dict[str, Any], data: bytes, images: ImageProcessor, videos: VideoProcessor) -> Planes:
    """Decode one file within the limits of its request. Raises InvalidMedia, MemoryError."""
    bounds = PixelBounds(*request["bounds"])
    if request["kind"] == "image":
        image_settings = replace(images.settings, bounds=bounds)
        return replace(images, settings=image_settings, **request["limits"]).decode(data, request["name"])
    video_settings = replace(videos.settings, bounds=bounds)
    limits = DecodeLimits(**request["limits"])
    videos = replace(videos, settings=video_settings, limits=limits, **request["sampling"])
    return videos.decode(data, None, request["name"])


def send(answers: BinaryIO, header: dict[str, Any], planes: Planes | None = None) -> None:
    """Write one answer."""
    answers.write(json.dumps(header).encode() + b"\n")
    if planes is not None:
        answers.write(np.ascontiguousarray(planes).data)
    answers.flush()


def restrict(memory: int) -> None:
    """Give up what decoding does not need: memory beyond `memory` bytes, writing files, outliving the parent."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(limit)
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (allowed, allowed))


if __name__ == "__main__":
    main()
