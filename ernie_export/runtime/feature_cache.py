"""Image and video features: frames of one size go through the encoder together, in calls of bounded size.

`FeatureCache` keeps the features, so that an image that is used again, in a later turn or by another request, is not
encoded again.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from ernie_export.runtime.engines import Encoder
from ernie_export.runtime.preprocess.positions import vision_coordinates

# Patches in one encoder call, so that activations stay bounded: the widest has 20 KB a patch at the released size. A
# single frame of more patches than this still goes whole, since its patches attend to each other.
PATCHES_PER_CALL = 4096
POLL_SECONDS = 0.05  # how soon a request that waits for another one's encoding notices its own end


def go_on() -> None:
    """Do nothing: the encoding that calls this between its steps is never given up."""


class FeatureCache:
    """A cache of the features of images and videos by the digest of their content.

    Used from any thread; one encodes at a time, so that what two threads need is encoded once, too.

    Attributes:
        queries: Items looked up.
        hits: Those of them that need not be encoded.
    """

    def __init__(self, engine: Encoder, merge: int, limit: int, patches_per_call: int = PATCHES_PER_CALL) -> None:
        """Start empty.

        Args:
            engine: Encodes frames.
            merge: Patches that make one token, along a side.
            limit: Bytes of features to keep, those last used.
            patches_per_call: Most patches in one encoder call; a larger frame goes alone.
        """
        self._engine = engine
        self._merge = merge
        self._limit = limit
        self._patches_per_call = patches_per_call
        self._kept: OrderedDict[bytes, np.ndarray] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()
        self.queries = 0
        self.hits = 0

    def encode(
        self, pixels: list[np.ndarray], grids: list[tuple[int, int, int]], check: Callable[[], None] = go_on
    ) -> tuple[list[np.ndarray], list[bytes]]:
        """Return each item's features and its digest; encodes only what is not kept, and that once.

        The arguments are those of `encode_media`; the features are read-only. `check` is called while this waits, too.
        """
        if not pixels:
            return [], []  # and wait for nobody
        digests = [digest(item, grid) for item, grid in zip(pixels, grids, strict=True)]
        with self._locked(check):
            features = {key: self._kept[key] for key in digests if key in self._kept}
            missing = [i for i, key in enumerate(digests) if key not in features and key not in digests[:i]]
            encoded = encode_media(
                self._engine,
                [pixels[i] for i in missing],
                [grids[i] for i in missing],
                self._merge,
                self._patches_per_call,
                check,
            )
            self.queries += len(digests)
            self.hits += len(digests) - len(missing)
            for i, item in zip(missing, encoded, strict=True):
                item.setflags(write=False)
                features[digests[i]] = item
            for key in digests:
                self._kept[key] = features[key]
                self._kept.move_to_end(key)
            while sum(item.nbytes for item in self._kept.values()) > self._limit:
                self._kept.popitem(last=False)
        return [features[key] for key in digests], digests

    @contextmanager
    def _locked(self, check: Callable[[], None]) -> Iterator[None]:
        while not self._lock.acquire(timeout=POLL_SECONDS):
            check()
        try:
            yield
        finally:
            self._lock.release()


def digest(pixels: np.ndarray, grid: tuple[int, int, int]) -> bytes:
    """Hash what an item's features depend on: its preprocessed pixels, (t·h·w, values), and its (t, h, w).

    The file that it came from does not count: the same image may come by another path, as base64 or from memory.
    Returns 16 bytes.
    """
    content = hashlib.blake2b(np.array(grid, np.int64).tobytes(), digest_size=16)
    content.update(np.ascontiguousarray(pixels).data)
    return content.digest()


def encode_media(
    engine: Encoder,
    pixels: list[np.ndarray],
    grids: list[tuple[int, int, int]],
    merge: int,
    patches_per_call: int = PATCHES_PER_CALL,
    check: Callable[[], None] = go_on,
) -> list[np.ndarray]:
    """Encode images and videos. A frame never sees another, so that grouping them changes no value.

    Args:
        engine: Encodes frames.
        pixels: Patches (t·h·w, values) float32 of each item.
        grids: Its (t, h, w) in patches, t = 1 for an image. Items of one (h, w) share calls.
        merge: Patches that make one token, along a side.
        patches_per_call: Most patches in one call.
        check: Called before each call of the encoder; what it raises ends the encoding.

    Returns:
        Features of each item (tokens, hidden).
    """
    features: list[list[np.ndarray]] = [[] for _ in pixels]
    for (height, width), items in by_frame_size(grids).items():
        coordinates = vision_coordinates(height, width, merge)
        for call in calls(items, grids, max(patches_per_call // (height * width), 1)):
            check()
            frames: list[np.ndarray] = []
            first: list[np.ndarray] = []
            second: list[np.ndarray] = []
            for item, start, stop in call:
                offset = sum(map(len, frames))
                frames.append(pixels[item].reshape(grids[item][0], height * width, -1)[start:stop])
                # A video's frames go two by two; an image stands on both sides of its pair.
                pairs = np.arange(offset, offset + stop - start).reshape(-1, 1 if grids[item][0] == 1 else 2)
                first.append(pairs[:, 0])
                second.append(pairs[:, -1])
            merged = engine.encode(
                np.concatenate(frames), coordinates, np.stack([np.concatenate(first), np.concatenate(second)])
            )
            split = np.split(merged, np.cumsum([len(pairs) for pairs in first])[:-1])
            for (item, _, _), part in zip(call, split, strict=True):
                features[item].append(part.reshape(-1, part.shape[-1]))
    return [np.concatenate(parts) for parts in features]


def by_frame_size(grids: list[tuple[int, int, int]]) -> dict[tuple[int, int], list[int]]:
    """Return the indices of the items of each (h, w), in order."""
    groups: dict[tuple[int, int], list[int]] = {}
    for item, (_, height, width) in enumerate(grids):
        groups.setdefault((height, width), []).append(item)
    return groups


def calls(items: list[int], grids: list[tuple[int, int, int]], max_frames: int) -> Iterator[list[tuple[int, int, int]]]:
    """Cut items of one frame size into encoder calls.

    Args:
        items: Indices of the items.
        grids: (t, h, w) of every item.
        max_frames: Most frames in one call. A pair of frames is never cut.

    Yields:
        Lists of (item, first frame, last frame + 1).
    """
    call: list[tuple[int, int, int]] = []
    used = 0
    for item in items:
        frames = grids[item][0]
        step = 1 if frames == 1 else 2
        start = 0
        while start < frames:
            if call and used + step > max_frames:
                yield call
                call = []
                used = 0
            stop = min(frames, start + max((max_frames - used) // step, 1) * step)
            call.append((item, start, stop))
            used += stop - start
            start = stop
    yield call
