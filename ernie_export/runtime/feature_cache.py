"""Media to features: frames of one size go through the encoder together, in calls of bounded size.

`FeatureCache` keeps what came out, so that a picture asked about again, in a later turn or by another request, is not
encoded again.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from ernie_export.runtime.engines import Encoder
from ernie_export.runtime.preprocess.positions import vision_coordinates

# Patches in one encoder call, so that activations stay bounded: the widest has 20 KB a patch at the released size. A
# single frame of more patches than this still goes whole, since its patches attend to each other.
PATCHES_PER_CALL = 4096


class FeatureCache:
    """Features of pictures and clips by the digest of their content, at most `limit` bytes, the last used ones.

    Used from any thread; one encodes at a time, so that what two threads ask for is encoded once, too.
    """

    def __init__(self, engine: Encoder, merge: int, limit: int) -> None:
        self._engine, self._merge, self._limit = engine, merge, limit
        self._kept: OrderedDict[bytes, np.ndarray] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def encode(
        self, pixels: list[np.ndarray], grids: list[tuple[int, int, int]]
    ) -> tuple[list[np.ndarray], list[bytes]]:
        """As `encode_media`, but encodes only what is not kept, and that once; read-only. And each item's digest."""
        if not pixels:
            return [], []  # and wait for nobody
        digests = [digest(item, grid) for item, grid in zip(pixels, grids, strict=True)]
        with self._lock:
            found = {key: self._kept[key] for key in digests if key in self._kept}
            missing = [i for i, key in enumerate(digests) if key not in found and key not in digests[:i]]
            encoded = encode_media(self._engine, [pixels[i] for i in missing], [grids[i] for i in missing], self._merge)
            for i, features in zip(missing, encoded, strict=True):
                features.setflags(write=False)
                found[digests[i]] = features
            for key in digests:
                self._kept[key] = found[key]
                self._kept.move_to_end(key)
            while sum(features.nbytes for features in self._kept.values()) > self._limit:
                self._kept.popitem(last=False)
        return [found[key] for key in digests], digests


def digest(pixels: np.ndarray, grid: tuple[int, int, int]) -> bytes:
    """What an item's features depend on, in 16 bytes: its preprocessed pixels, (t·h·w, values), and its (t, h, w).

    Not the file that it came from: the same picture may come by another path, as base64 or from memory.
    """
    content = hashlib.blake2b(np.array(grid, np.int64).tobytes(), digest_size=16)
    content.update(np.ascontiguousarray(pixels).data)
    return content.digest()


def encode_media(
    engine: Encoder, pixels: list[np.ndarray], grids: list[tuple[int, int, int]], merge: int
) -> list[np.ndarray]:
    """Features of each image or clip, (tokens, hidden) each.

    pixels: (t·h·w, values) float32 of each item; grids: its (t, h, w) in patches, t = 1 for an image. Items of one
    (h, w) share calls; a frame never sees another, so the grouping changes no value.
    """
    features: list[list[np.ndarray]] = [[] for _ in pixels]
    for (height, width), items in by_frame_size(grids).items():
        coordinates = vision_coordinates(height, width, merge)
        for call in calls(items, grids, height * width):
            frames: list[np.ndarray] = []
            first: list[np.ndarray] = []
            second: list[np.ndarray] = []
            for item, start, stop in call:
                place = sum(map(len, frames))
                frames.append(pixels[item].reshape(grids[item][0], height * width, -1)[start:stop])
                # A clip's frames go two by two; an image stands on both sides of its pair.
                pairs = np.arange(place, place + stop - start).reshape(-1, 1 if grids[item][0] == 1 else 2)
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
    """Numbers of the items of each (h, w), in order."""
    groups: dict[tuple[int, int], list[int]] = {}
    for item, (_, height, width) in enumerate(grids):
        groups.setdefault((height, width), []).append(item)
    return groups


def calls(items: list[int], grids: list[tuple[int, int, int]], patches: int) -> Iterator[list[tuple[int, int, int]]]:
    """Cut items of one frame size into encoder calls: lists of (item, first frame, last frame + 1).

    A clip is cut between pairs of frames only.
    """
    room = max(PATCHES_PER_CALL // patches, 1)
    call: list[tuple[int, int, int]] = []
    used = 0
    for item in items:
        frames = grids[item][0]
        step = 1 if frames == 1 else 2
        start = 0
        while start < frames:
            if call and used + step > room:
                yield call
                call, used = [], 0
            stop = min(frames, start + max((room - used) // step, 1) * step)
            call.append((item, start, stop))
            used += stop - start
            start = stop
    yield call
