"""Compute token types and three-axis rotary positions of a tokenized prompt.

Source: `get_rope_index` (modeling_ernie4_5_vl_moe.py).
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from ernie_export.common.errors import InvalidValue

Ints = NDArray[np.int64]

TEXT, IMAGE, VIDEO = 0, 1, 2
_NAMES = {IMAGE: "image", VIDEO: "video"}


def token_types(input_ids: Ints, token_ids: Mapping[str, int]) -> tuple[Ints, Ints]:
    """Return mm_token_type_ids and moe_mm_token_type_ids, both int64 of the shape of `input_ids`.

    0 is text, 1 image, 2 video; the second also marks start and end tokens, which the vision experts serve too.
    `token_ids` has image_token, image_start_token, image_end_token and the same three for video.
    """
    input_ids = np.asarray(input_ids)
    types = np.zeros(input_ids.shape, dtype=np.int64)
    for kind, name in _NAMES.items():
        types[input_ids == token_ids[f"{name}_token"]] = kind
    moe_types = types.copy()
    for kind, name in _NAMES.items():
        for end in ("start", "end"):
            moe_types[input_ids == token_ids[f"{name}_{end}_token"]] = kind
    return types, moe_types


def rope_positions(
    input_ids: Ints,
    mm_token_type_ids: Ints,
    image_grid_thw: Ints | None = None,
    video_grid_thw: Ints | None = None,
    attention_mask: Ints | None = None,
    *,
    spatial_merge_size: int = 2,
    temporal_merge_size: int = 2,
) -> Ints:
    """Return the positions (t, h, w) of every prompt token, int64 (3, batch, sequence), 0 at pads.

    A text run advances the axes together; an image or video of grid (t, h, w) takes indices from the current position,
    and the next position is max(h, w) // merge further. Adjacent placeholders of two media items are split by their
    grids (the reference merges them into one run and fails).

    Args:
        input_ids: int64 (batch, sequence), padded on either side.
        mm_token_type_ids: int64 of the same shape.
        image_grid_thw: int64 (images, 3) in the order of the whole batch.
        video_grid_thw: int64 (videos, 3) in the order of the whole batch.
        attention_mask: int64 of the shape of `input_ids`, 0 at pads; None for no pads.
        spatial_merge_size: Patches that a decoder token merges along height and along width.
        temporal_merge_size: Frames of a video that a decoder token merges.

    Raises:
        InvalidValue: Placeholders and grids do not match.
    """
    types = np.asarray(mm_token_type_ids)
    positions = np.zeros((3, *np.shape(input_ids)), dtype=np.int64)
    grids = _MergedGrids(image_grid_thw, video_grid_thw, spatial_merge_size, temporal_merge_size)
    for index, row_types in enumerate(types):
        keep = np.ones(len(row_types), bool)
        if attention_mask is not None:
            keep = np.asarray(attention_mask)[index].astype(bool)
        positions[:, index, keep] = _sequence_positions(row_types[keep], grids)
    grids.check_all_taken()
    return positions


class _MergedGrids:
    """The grids of a batch's images and videos, taken one after another."""

    def __init__(self, images: Ints | None, videos: Ints | None, spatial: int, temporal: int) -> None:
        self._grids: dict[int, Iterator[Ints]] = {
            IMAGE: iter(() if images is None else np.asarray(images)),
            VIDEO: iter(() if videos is None else np.asarray(videos)),
        }
        self._spatial = spatial
        self._temporal = {IMAGE: 1, VIDEO: temporal}

    def take(self, kind: int, placeholders: int) -> tuple[int, int, int]:
        """Return the next grid of a kind, (t, h, w) in decoder tokens, for a run of so many placeholders.

        Raises InvalidValue if there is none, or if it has more tokens than there are placeholders.
        """
        grid = next(self._grids[kind], None)
        if grid is None:
            raise InvalidValue("prompt", f"a grid for each {_NAMES[kind]}", "too few")
        t, h, w = (int(n) for n in grid)
        merged = (t // self._temporal[kind], h // self._spatial, w // self._spatial)
        tokens = math.prod(merged)
        if tokens > placeholders:
            raise InvalidValue("prompt", f"{tokens} tokens for the {_NAMES[kind]} of grid {(t, h, w)}", placeholders)
        return merged

    def check_all_taken(self) -> None:
        """Raise InvalidValue if a grid is left over."""
        for kind, grids in self._grids.items():
            if next(grids, None) is not None:
                raise InvalidValue("prompt", f"a placeholder for each {_NAMES[kind]}", "too few")


def _sequence_positions(types: Ints, grids: _MergedGrids) -> Ints:
    """Return int64 (3, tokens), the positions of one sequence without pads."""
    parts: list[Ints] = [np.zeros((3, 0), np.int64)]
    current = index = 0
    while index < len(types):
        kind = int(types[index])
        ends = np.flatnonzero(types[index:] != kind)
        run = int(ends[0]) if len(ends) else len(types) - index
        if kind == TEXT:
            parts.append(np.broadcast_to(np.arange(current, current + run), (3, run)))
            current += run
            index += run
        else:
            t, h, w = grids.take(kind, run)
            parts.append(np.indices((t, h, w), dtype=np.int64).reshape(3, -1) + current)
            current += max(h, w)
            index += t * h * w
    return np.concatenate(parts, axis=1)


def vision_coordinates(h: int, w: int, merge: int) -> Ints:
    """Return int64 (h·w, 2), row and column of each patch of one frame, in merge×merge-block-major order.

    Args:
        h: Rows of patches, a multiple of `merge`.
        w: Columns of patches, a multiple of `merge`.
        merge: Patches that a decoder token merges along each side.
    """
    coordinates = np.indices((h, w), dtype=np.int64).reshape(2, h // merge, merge, w // merge, merge)
    return coordinates.transpose(1, 3, 2, 4, 0).reshape(h * w, 2)
