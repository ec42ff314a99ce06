"""Decode untrusted media in worker processes, which can be ended: a thread that decodes cannot.

A worker that takes too long, uses too much memory, dies, or whose client has left is killed and replaced. Workers are
also replaced after a number of files, so that a leak in a decoder stays small.
"""

import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

import numpy as np

from ernie_export.common.errors import InvalidMedia
from ernie_export.runtime.preprocess.image import ImageProcessor, ImageSource
from ernie_export.runtime.preprocess.pixels import Planes
from ernie_export.runtime.preprocess.video import SampledVideo, VideoProcessor, VideoSource
from ernie_export.runtime.serving.media_options import AS_THE_BUNDLE, MediaOptions
from ernie_export.runtime.serving.media_worker import SAMPLING, out_of_memory

PROGRAM = "ernie_export.runtime.serving.media_worker"
FILES_PER_WORKER = 256
POLL_SECONDS = 0.05  # how soon a cancelled request lets go of its worker
MAX_HEADER_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 2**30  # 180 frames, the most that the released processor samples, come to half of it
WRITE_BYTES = 2**20


class Cancelled(Exception):
    """The request for which media are decoded has ended: its client left, or the server stops."""


class WorkerDied(Exception):
    """A worker ended in the middle of a request."""


@dataclass(frozen=True)
class Job:
    """What bounds one exchange with a worker.

    Attributes:
        name: The image or video, for errors.
        deadline: Time by `time.monotonic()` at which it is given up.
        cancelled: Whether the request has ended.
    """

    name: str
    deadline: float
    cancelled: Callable[[], bool]

    def wait(self, descriptor: int, write: bool = False) -> None:
        """Wait until a pipe can be read or written. Raises Cancelled; InvalidMedia past the deadline."""
        while True:
            ready = select.select([] if write else [descriptor], [descriptor] if write else [], [], POLL_SECONDS)
            if self.cancelled():
                raise Cancelled
            if ready[0] or ready[1]:
                return
            if time.monotonic() > self.deadline:
                raise InvalidMedia(self.name, "media that can be decoded in time", "that it takes longer")


class Worker:
    """One worker process. Used by one thread at a time."""

    def __init__(self, bundle: Path, memory: int) -> None:
        command = [_python(), "-P", "-m", PROGRAM, str(bundle), str(memory)]
        # Each thread of a math library would reserve address space.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, env=environment, bufsize=0, **pipes)
        self._requests = _pipe(self._process.stdin)
        self._answers = _pipe(self._process.stdout)
        os.set_blocking(self._requests, False)
        self.files = 0
        self._announced = False

    def decode(self, header: dict[str, Any], data: bytes, job: Job) -> Planes:
        """Send one file and return its pixels.

        Args:
            header: The request without its size.
            data: The file.
            job: What bounds the exchange.

        Raises:
            InvalidMedia: The worker refused the file, or the deadline has passed.
            Cancelled: The request has ended.
            WorkerDied: The worker ended, or its answer is not one.
        """
        if not self._announced:
            self._read_header(job)
            self._announced = True
        self.files += 1
        self._write(json.dumps({**header, "bytes": len(data)}).encode() + b"\n", job)
        self._write(data, job)
        answer = self._read_header(job)
        if "invalid" in answer:
            raise InvalidMedia(**answer["invalid"])
        pixels = bytearray(math.prod(_checked_shape(answer)))
        self._read_into(memoryview(pixels), job)
        return np.frombuffer(pixels, np.uint8).reshape(_checked_shape(answer))

    def kill(self) -> None:
        """End the process at once. May be called from any thread."""
        self._process.kill()
        self._process.wait()

    def ending(self) -> str:
        """End the process, and return how it ended if it did so by itself."""
        self.kill()
        code = self._process.returncode
        return f"the decoder ended ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"

    def close(self) -> None:
        """End the process and close its pipes, which no other thread may be using."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _write(self, data: bytes, job: Job) -> None:
        view = memoryview(data)
        while view:
            job.wait(self._requests, write=True)
            try:
                view = view[os.write(self._requests, view[:WRITE_BYTES]) :]
            except BlockingIOError:  # less than the system said
                continue
            except BrokenPipeError as e:
                raise WorkerDied from e

    def _read_header(self, job: Job) -> dict[str, Any]:
        line = bytearray()
        while not line.endswith(b"\n"):
            line += self._read(1, job)
            if len(line) > MAX_HEADER_BYTES:
                raise WorkerDied
        try:
            header = json.loads(line)
        except ValueError as e:
            raise WorkerDied from e
        if not isinstance(header, dict):
            raise WorkerDied
        return header

    def _read_into(self, view: memoryview, job: Job) -> None:
        while view:
            piece = self._read(len(view), job)
            view[: len(piece)] = piece
            view = view[len(piece) :]

    def _read(self, most: int, job: Job) -> bytes:
        job.wait(self._answers)
        piece = os.read(self._answers, min(most, WRITE_BYTES))
        if not piece:
            raise WorkerDied
        return piece


class MediaPool:
    """Worker processes for one bundle, started when they are needed and kept."""

    def __init__(self, bundle: Path, workers: int, memory: int) -> None:
        """Make a pool without processes yet; `start` or the first file starts them.

        Args:
            bundle: Folder of the bundle, whose processor settings the workers read.
            workers: Files that are decoded at a time.
            memory: Bytes of address space of one worker.
        """
        self._bundle = bundle
        self._memory = memory
        self._slots: SimpleQueue[Worker | None] = SimpleQueue()  # one for each worker; None where it is to be started
        self._closed = threading.Event()
        self._running: set[Worker] = set()
        self._workers = workers
        for _ in range(workers):
            self._slots.put(None)

    def start(self) -> None:
        """Start every worker that is not there, so that no request waits for one. Loading takes place meanwhile."""
        for _ in range(self._workers):
            self._slots.put(self._slots.get() or self._start_worker())

    def decode(self, header: dict[str, Any], data: bytes, job: Job) -> Planes:
        """Decode one file in a worker; see `Worker.decode`. Raises InvalidMedia, Cancelled.

        A worker that ends by itself has most likely found no memory: libraries abort then.
        """
        worker = self._slots.get()
        reusable = False
        try:
            if self._closed.is_set():
                raise Cancelled
            worker = worker or self._start_worker()
            planes = worker.decode(header, data, job)
            reusable = True
            return planes
        except InvalidMedia:
            reusable = worker is not None and time.monotonic() <= job.deadline
            raise
        except WorkerDied as e:
            if worker is None or self._closed.is_set():
                raise Cancelled from e
            raise out_of_memory(job.name, self._memory, worker.ending()) from e
        finally:
            if worker is not None and (not reusable or worker.files >= FILES_PER_WORKER):
                self._end(worker)
                worker = None
            self._slots.put(worker)

    def close(self) -> None:
        """End every worker, whatever it does. Requests that are being decoded raise Cancelled."""
        self._closed.set()
        for worker in list(self._running):
            worker.kill()  # the thread that waits for it, if one does, meets the end of its pipe and closes it

    def _start_worker(self) -> Worker:
        worker = Worker(self._bundle, self._memory)
        self._running.add(worker)
        return worker

    def _end(self, worker: Worker) -> None:
        self._running.discard(worker)
        worker.close()


@dataclass(frozen=True)
class PooledDecoder:
    """Decodes the media of one untrusted request in workers; a `MediaDecoder`.

    Attributes:
        pool: The workers.
        images: Image processor with the limits of the request.
        videos: Video processor with the limits of the request.
        image_seconds: Longest time for one image.
        video_seconds: Longest time for one video.
        deadline: Time by `time.monotonic()` at which the request is given up.
        cancelled: Whether the request has ended.
        options: What the request chooses, which both processors follow; it names images of less detail.
    """

    pool: MediaPool
    images: ImageProcessor
    videos: VideoProcessor
    image_seconds: float
    video_seconds: float
    deadline: float
    cancelled: Callable[[], bool]
    options: MediaOptions = AS_THE_BUNDLE

    def image(self, source: ImageSource, name: str) -> Planes:
        """Decode and resize one image."""
        limits = {"max_source_pixels": self.images.max_source_pixels, "formats": self.images.formats}
        bounds = self.options.of_image(name, self.images)
        return self._decode("image", source, name, {"limits": limits, "bounds": astuple(bounds)}, self.image_seconds)

    def video(self, source: VideoSource | SampledVideo, fps: float | None, name: str) -> Planes:
        """Decode, sample, stamp and resize one video. `fps` is for frames that are not from a file, and not used."""
        videos = self.videos
        sampling = {name: getattr(videos, name) for name in SAMPLING}
        bounds = astuple(videos.settings.bounds)
        header = {"limits": asdict(videos.limits), "bounds": bounds, "sampling": sampling}
        return self._decode("video", source, name, header, self.video_seconds)

    def _decode(self, kind: str, source: object, name: str, header: dict[str, Any], seconds: float) -> Planes:
        if not isinstance(source, bytes):
            raise InvalidMedia(name, "the bytes of a file", type(source).__name__)
        deadline = min(self.deadline, time.monotonic() + seconds)
        job = Job(name, deadline, self.cancelled)
        return self.pool.decode({"kind": kind, "name": name, **header}, source, job)


def _checked_shape(answer: dict[str, Any]) -> tuple[int, ...]:
    """Return the shape that a worker announces. Raises WorkerDied for one that cannot be: it runs untrusted data."""
    shape = answer.get("shape")
    if not isinstance(shape, list) or len(shape) != 4 or not all(type(n) is int and n > 0 for n in shape):
        raise WorkerDied
    if math.prod(shape) > MAX_ANSWER_BYTES:
        raise WorkerDied
    return tuple(shape)


def _python() -> str:
    """Return this environment's interpreter. A program that embeds Python, as Triton's stub does, is none itself."""
    if Path(sys.executable).name.startswith("python"):
        return sys.executable
    return str(Path(sys.prefix, "bin", "python3"))


def _pipe(pipe: IO[bytes] | None) -> int:
    assert pipe is not None  # it was asked for
    return pipe.fileno()
