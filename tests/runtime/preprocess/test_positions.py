"""Positions by hand, and prompts that do not match their grids."""

import numpy as np
import pytest

from ernie_export.common.errors import UserError
from ernie_export.runtime.preprocess.positions import rope_positions, vision_coordinates


def test_by_hand():
    """Two text tokens, a clip of 4×4×2 patches (2×2×1 tokens), one text token; a pad on the left."""
    types = np.array([[0, 0, 0, 2, 2, 2, 2, 0]])
    mask = np.array([[0, 1, 1, 1, 1, 1, 1, 1]])
    positions = rope_positions(types, types, None, np.array([[4, 4, 2]]), mask)
    assert positions[:, 0].tolist() == [
        [0, 0, 1, 2, 2, 3, 3, 4],
        [0, 0, 1, 2, 3, 2, 3, 4],
        [0, 0, 1, 2, 2, 2, 2, 4],
    ]


def test_merge_sizes():
    types = np.array([[1] * 4 + [2] * 4])
    positions = rope_positions(
        types, types, np.array([[1, 6, 6]]), np.array([[3, 3, 12]]), spatial_merge_size=3, temporal_merge_size=3
    )
    assert positions[:, 0, :4].tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]]
    assert positions[:, 0, 4:].tolist() == [[2, 2, 2, 2], [2, 2, 2, 2], [2, 3, 4, 5]]


@pytest.mark.parametrize(
    "types,images,line",
    [
        ([1, 1, 0], [[1, 2, 6]], r"expected 3 tokens for the image of grid \(1, 2, 6\), found 2"),
        ([1, 1, 1, 1, 0], [[1, 2, 6]], "expected a grid for each image, found too few"),
        ([0, 0], [[1, 2, 6]], "expected a placeholder for each image, found too few"),
        ([1, 1, 1, 0, 1], [[1, 2, 6]], "expected a grid for each image"),
    ],
)
def test_prompts_that_do_not_match_their_grids(types: list[int], images: list, line: str):
    with pytest.raises(UserError, match=line):
        rope_positions(np.array([types]), np.array([types]), np.array(images))


def test_patch_coordinates():
    assert vision_coordinates(2, 4, 2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
