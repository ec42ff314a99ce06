"""A large file written in whole blocks past the page cache, hashed while the next block is being made.

A buffered write costs more processor time than anything else that an export does, and fills the page cache with a file
that may be larger than it. Blocks of one size at multiples of it, from memory that begins on a page, are what O_DIRECT
takes; where the file system has no direct writes, the same blocks go through the page cache.
"""

import fcntl
import hashlib
import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Blocks:
    """The blocks that a file is made and written in: large enough that calls cost nothing.

    Attributes:
        made_bytes: What is read and converted at a time.
        written_bytes: What is written at a time, a multiple of the page.
        count: Blocks in memory: being filled, hashed and written.
        direct: Whether to write past the page cache where the file system can.
    """

    made_bytes: int = 4 * 2**20
    written_bytes: int = 4 * 2**20
    count: int = 4
    direct: bool = True


BLOCKS = Blocks()


class DirectWriter:
    """A new file at `path` as a context manager; removed if the block fails. Raises OSError as the file system does.

    One thread hashes and another writes, both without the interpreter's lock: beside reading and converting, which are
    the caller's, each takes about as long as the others.
    """

    def __init__(self, path: Path, blocks: Blocks = BLOCKS) -> None:
        self.path = path
        self.blocks = blocks
        self.file = path.open("xb", buffering=0)
        self.direct = blocks.direct and set_direct(self.file.fileno(), True)
        self.hash = hashlib.sha256()
        self.hashing = ThreadPoolExecutor(1)
        self.writing = ThreadPoolExecutor(1)
        # Anonymous maps begin on a page.
        self.free = deque(np.frombuffer(mmap.mmap(-1, blocks.written_bytes), np.uint8) for _ in range(blocks.count))
        self.busy: deque[tuple[np.ndarray, Future[None], Future[None]]] = deque()
        self.scratch = np.empty(blocks.made_bytes, np.uint8)
        self.filled = 0

    def __enter__(self) -> "DirectWriter":
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self.hashing.shutdown(cancel_futures=True)
        self.writing.shutdown(cancel_futures=True)
        self.file.close()
        if failure is not None:
            self.path.unlink(missing_ok=True)

    def block(self, nbytes: int) -> np.ndarray:
        """Return `nbytes` (uint8) to fill and `put`; the next call returns the same memory."""
        return self.scratch[:nbytes] if nbytes <= self.scratch.size else np.empty(nbytes, np.uint8)

    def put(self, data: np.ndarray) -> None:
        """Append a copy of `data` (uint8, 1-D)."""
        done = 0
        while done < data.size:
            if not self.free:
                self.reclaim()
            count = min(self.blocks.written_bytes - self.filled, data.size - done)
            self.free[0][self.filled : self.filled + count] = data[done : done + count]
            self.filled += count
            done += count
            if self.filled == self.blocks.written_bytes:
                self.send()

    def send(self) -> None:
        """Pass the current block to both threads."""
        block = self.free.popleft()
        view = block[: self.filled].data
        self.busy.append((block, self.hashing.submit(self.hash.update, view), self.writing.submit(self.write, view)))
        self.filled = 0

    def reclaim(self) -> None:
        """Wait for the oldest block in flight, and raise its error, if any."""
        block, hashed, written = self.busy.popleft()
        written.result()
        hashed.result()
        self.free.append(block)

    def write(self, view: memoryview) -> None:
        """Append `view` to the file; what is no whole block (the end, or the rest of one cut short) is not direct."""
        done = 0
        while done < len(view):
            if self.direct and len(view) - done < self.blocks.written_bytes:
                self.direct = set_direct(self.file.fileno(), False)
            done += os.write(self.file.fileno(), view[done:])

    def finish(self) -> str:
        """Flush everything to the disk; return the SHA-256 of all bytes put, in hexadecimal digits."""
        if self.filled:
            self.send()
        while self.busy:
            self.reclaim()
        os.fsync(self.file.fileno())
        return self.hash.hexdigest()


def set_direct(descriptor: int, wanted: bool) -> bool:
    """Turn writing past the page cache on or off; return whether it is on: not every file system has it."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    with suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT)
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
