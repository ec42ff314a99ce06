"""A large file written from a ring of blocks, hashed and flushed to the disk while the next block is being read."""

import hashlib
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

BLOCK = 4 * 2**20  # bytes of one block: large enough that calls cost nothing
BLOCKS = 4  # blocks in flight between reading and hashing
FLUSH = 64 * 2**20  # bytes between two requests to write back, which would otherwise all wait for the end


class Sink:
    """A new file at `path` as a context manager; removed if the block fails. Raises OSError as the file system does.

    SHA-256 takes longer than reading and writing together, so it runs in a thread of its own (hashlib releases the
    interpreter's lock); a second thread waits for the disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("xb", buffering=0)
        self.hash = hashlib.sha256()
        self.hashing = ThreadPoolExecutor(1)
        self.flushing = ThreadPoolExecutor(1)
        self.ring = deque(np.empty(BLOCK, np.uint8) for _ in range(BLOCKS))
        self.hashed: deque[Future[None]] = deque()
        self.flushed: Future[None] | None = None
        self.unflushed = 0

    def __enter__(self) -> "Sink":
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self.hashing.shutdown()
        self.flushing.shutdown()
        self.file.close()
        if failure is not None:
            self.path.unlink(missing_ok=True)

    def block(self, nbytes: int) -> np.ndarray:
        """`nbytes` (uint8) to fill and `put`: the ring's oldest block, or a new array if that is too small."""
        while len(self.hashed) >= BLOCKS:
            self.hashed.popleft().result()
        self.ring.rotate(1)
        return self.ring[0][:nbytes] if nbytes <= BLOCK else np.empty(nbytes, np.uint8)

    def put(self, data: np.ndarray) -> None:
        """Append `data` (uint8, 1-D), which must stay as it is until `block` has gone once round the ring."""
        view = data.data
        self.hashed.append(self.hashing.submit(self.hash.update, view))
        done = 0
        while done < len(view):
            done += os.write(self.file.fileno(), view[done:])
        self.unflushed += done
        if self.unflushed >= FLUSH and (self.flushed is None or self.flushed.done()):
            self.wait_for_disk()
            self.flushed = self.flushing.submit(os.fsync, self.file.fileno())
            self.unflushed = 0

    def wait_for_disk(self) -> None:
        """Wait for the last flush and raise what it met."""
        if self.flushed is not None:
            self.flushed.result()

    def finish(self) -> str:
        """Flush everything to the disk; the SHA-256 of all bytes put, in hexadecimal digits."""
        self.wait_for_disk()
        os.fsync(self.file.fileno())
        for future in self.hashed:
            future.result()
        return self.hash.hexdigest()
