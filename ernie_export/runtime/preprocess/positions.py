"""Token types and three-axis positions of a tokenized prompt.

Source: `get_rope_index` (modeling_ernie4_5_vl_moe.py).
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from ernie_export.common.errors import UserError

Ints = NDArray[np.int64]

TEXT, IMAGE, VIDEO = 0, 1, 2
_NAMES = {IMAGE: "image", VIDEO: "video"}


def token_types(input_ids: Ints, token_ids: Mapping[str, int]) -> tuple[Ints, Ints]:
    """mm_token_type_ids and moe_mm_token_type_ids, both int64 of the shape of `input_ids`.

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
    """Positions (t, h, w) of every prompt token.

    `input_ids`, `mm_token_type_ids` and `attention_mask` are int64 (batch, sequence), padded on either side; grids are
    int64 (n, 3) in the order of the whole batch. Returns position_ids int64 (3, batch, sequence), 0 at pads.

    A text run advances the axes together; a picture of grid (t, h, w) takes indices from the current position, and the
    next is max(h, w) // merge further. Adjacent placeholders of two pictures are split by their grids (the reference
    merges them into one run and fails).

    Raises UserError where placeholders and grids do not match.
    """
    input_ids, types = np.asarray(input_ids), np.asarray(mm_token_type_ids)
    positions = np.zeros((3, *input_ids.shape), dtype=np.int64)
    grids: dict[int, Iterator[Ints]] = {
        IMAGE: iter(() if image_grid_thw is None else np.asarray(image_grid_thw)),
        VIDEO: iter(() if video_grid_thw is None else np.asarray(video_grid_thw)),
    }
    temporal = {IMAGE: 1, VIDEO: temporal_merge_size}
    for row, row_types in enumerate(types):
        keep = np.ones(len(row_types), bool) if attention_mask is None else np.asarray(attention_mask)[row].astype(bool)
        kinds = row_types[keep]
        parts: list[Ints] = []
        current = index = 0
        while index < len(kinds):
            kind = int(kinds[index])
            ends = np.flatnonzero(kinds[index:] != kind)
            run = int(ends[0]) if len(ends) else len(kinds) - index
            if kind == TEXT:
                parts.append(np.broadcast_to(np.arange(current, current + run), (3, run)))
                current += run
                index += run
                continue
            grid = next(grids[kind], None)
            if grid is None:
                raise UserError(f"prompt: expected a grid for each {_NAMES[kind]}, found too few")
            t, h, w = (int(n) for n in grid)
            part = _grid_positions(t // temporal[kind], h // spatial_merge_size, w // spatial_merge_size) + current
            if part.shape[1] > run:
                name, tokens = _NAMES[kind], part.shape[1]
                raise UserError(f"prompt: expected {tokens} tokens for the {name} of grid {(t, h, w)}, found {run}")
            parts.append(part)
            current += max(h, w) // spatial_merge_size
            index += part.shape[1]
        if parts:
            positions[:, row, keep] = np.concatenate(parts, axis=1)
    for kind, rest in grids.items():
        if next(rest, None) is not None:
            raise UserError(f"prompt: expected a placeholder for each {_NAMES[kind]}, found too few")
    return positions


def _grid_positions(t: int, h: int, w: int) -> Ints:
    """int64 (3, t·h·w): the (t, h, w) indices of a merged grid, row by row."""
    return np.indices((t, h, w), dtype=np.int64).reshape(3, -1)


def vision_coordinates(h: int, w: int, merge: int) -> Ints:
    """int64 (h·w, 2): row and column of each patch of one frame, in merge×merge-block-major order.

    `h` and `w` are the unmerged grid, multiples of `merge`. The order in which patches come out of the processors.
    """
    coordinates = np.indices((h, w), dtype=np.int64).reshape(2, h // merge, merge, w // merge, merge)
    return coordinates.transpose(1, 3, 2, 4, 0).reshape(h * w, 2)
