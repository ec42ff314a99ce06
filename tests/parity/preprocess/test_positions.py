"""Positions against get_rope_index, and against what generate() really feeds the decoder at every step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from ernie_export.runtime.answer_text import AnswerText
from ernie_export.runtime.preprocess import Preprocessor
from ernie_export.runtime.preprocess.positions import rope_positions, token_types, vision_coordinates
from ernie_export.runtime.sampling import Sampler
from ernie_export.runtime.sequence import Prompt, Sequence
from tests.mini import TOKEN_COUNT

TOKENS = {
    "image_token": 10, "image_start_token": 11, "image_end_token": 12,
    "video_token": 13, "video_start_token": 14, "video_end_token": 15,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(mini: Path):
    from transformers import Ernie4_5_VLMoeForConditionalGeneration

    return Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(mini, experts_implementation="eager").eval()


@pytest.fixture(scope="module")
def reference_positions(model):
    import torch

    def positions(ids, types, images, videos, mask):
        result, _ = model.model.get_rope_index(
            torch.from_numpy(ids),
            torch.from_numpy(types),
            torch.from_numpy(images),
            torch.from_numpy(videos),
            torch.from_numpy(mask),
        )
        return result.numpy()

    return positions


def random_batch(rng: np.random.Generator, rows: int, text_only: bool) -> tuple[np.ndarray, ...]:
    """Prompts of text, pictures and clips in random order, padded on the left, with their grids."""
    prompts: list[list[int]] = []
    images: list[list[int]] = []
    videos: list[list[int]] = []
    for _ in range(rows):
        prompt = [1] * int(rng.integers(1, 6))
        for _ in range(0 if text_only else int(rng.integers(0, 6))):
            h, w = (2 * int(n) for n in rng.integers(1, 6, 2))
            if rng.random() < 0.5:
                images.append([1, h, w])
                prompt += [11, *[10] * (h * w // 4), 12]
            else:
                t = 2 * int(rng.integers(1, 20))
                videos.append([t, h, w])
                prompt += [14, *[13] * (t * h * w // 8), 15]
            prompt += [1] * int(rng.integers(0, 5))
        prompts.append(prompt)
    length = max(map(len, prompts))
    ids = np.array([[0] * (length - len(p)) + p for p in prompts], dtype=np.int64)
    mask = np.array([[0] * (length - len(p)) + [1] * len(p) for p in prompts], dtype=np.int64)
    grids = (np.array(g, dtype=np.int64).reshape(-1, 3) for g in (images, videos))
    return ids, mask, *grids


@pytest.mark.parametrize("seed", range(30))
def test_random_batches(reference_positions, seed: int):
    rng = np.random.default_rng(seed)
    ids, mask, images, videos = random_batch(rng, int(rng.integers(1, 5)), text_only=seed % 10 == 0)
    types, _ = token_types(ids, TOKENS)
    positions = rope_positions(ids, types, images, videos, mask)
    expected = reference_positions(ids, types, images, videos, mask)
    assert positions.dtype == expected.dtype == np.int64
    assert np.array_equal(positions, expected)


@pytest.mark.parametrize("seed", range(5))
def test_padding_on_the_right_gives_the_same_rows(seed: int):
    ids, mask, images, videos = random_batch(np.random.default_rng(seed), 3, text_only=False)
    types, _ = token_types(ids, TOKENS)
    left = rope_positions(ids, types, images, videos, mask)
    pads = (mask == 0).sum(axis=1)
    turned_types, turned_mask = (np.stack([*map(np.roll, rows, -pads)]) for rows in (types, mask))
    right = rope_positions(ids, turned_types, images, videos, turned_mask)
    for row in range(len(ids)):
        assert np.array_equal(left[:, row][:, mask[row] == 1], right[:, row][:, turned_mask[row] == 1])


@pytest.mark.parametrize("h,w,merge", [(2, 2, 2), (4, 6, 2), (12, 2, 2), (6, 9, 3), (3, 5, 1)])
def test_patch_coordinates(h: int, w: int, merge: int):
    import torch
    from transformers.vision_utils import get_vision_position_ids

    expected = get_vision_position_ids(torch.tensor([[1, h, w]]), merge)
    assert np.array_equal(vision_coordinates(h, w, merge), expected.numpy())


def test_token_types(mini: Path, reference_processor):
    processor = reference_processor(mini)
    tokens = Preprocessor.from_folder(mini).chat.token_ids
    ids = np.random.default_rng(0).integers(TOKEN_COUNT - 20, TOKEN_COUNT, (3, 200))  # media tokens among them
    types, moe_types = token_types(ids, tokens)
    assert types.tolist() == processor.create_mm_token_type_ids(ids.tolist())
    assert moe_types.tolist() == processor.create_moe_mm_token_type_ids(ids.tolist())
    assert (types != moe_types).any()


STEPS = 4


def fed_positions(model: Any, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The (3, B, S) positions of each call of the decoder in a greedy generate() of STEPS tokens."""
    import torch

    seen: list[np.ndarray] = []
    decoder = model.model.language_model
    forward = decoder.rotary_emb.forward

    def record(hidden, position_ids):
        seen.append(position_ids.numpy().copy())
        return forward(hidden, position_ids)

    decoder.rotary_emb.forward = record
    try:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        model.generate(**tensors, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False)
    finally:
        decoder.rotary_emb.forward = forward
    return seen


def decoded_positions(position_ids: np.ndarray) -> np.ndarray:
    """The (3, B, STEPS - 1) positions that the runtime feeds its decoder after prompts' (3, B, S) positions."""
    none = np.zeros((position_ids.shape[2], 3), np.int64)
    rows = []
    for row in range(position_ids.shape[1]):
        prompt = Prompt(none[:, 0], none[:, 0], none[:, 0], position_ids[:, row], np.zeros((0, 8)), none)
        sequence = Sequence(prompt, Mock(Sampler), Mock(AnswerText), frozenset(), STEPS)
        positions = []
        for _ in range(STEPS - 1):
            sequence.tokens.append(0)
            positions.append(sequence.position)
        rows.append(np.stack(positions, axis=1))
    return np.stack(rows, axis=1)


def messages(kinds: str) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    sources = {
        "i": {"type": "image", "image": Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))},
        "v": {"type": "video", "video": rng.integers(0, 256, (5, 60, 90, 3), dtype=np.uint8)},
        "l": {"type": "video", "video": rng.integers(0, 256, (60, 30, 30, 3), dtype=np.uint8)},
        "t": {"type": "text", "text": "and then"},
    }
    return [{"role": "user", "content": [sources[kind] for kind in kinds]}]


CONVERSATIONS = {"text": "t", "image": "it", "video": "vt", "mixed": "itvti", "a long video, then a short text": "l"}


@pytest.mark.parametrize("kinds", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_what_generate_feeds(altered, model, kinds: str):
    folder = altered(video={"min_frames": 4, "max_frames": 60, "size": {"shortest_edge": 784, "longest_edge": 3136}})
    prepared = Preprocessor.from_folder(folder).prepare(messages(kinds), variables={"enable_thinking": True})
    seen = fed_positions(model, prepared.arrays)
    assert len(seen) == STEPS
    assert np.array_equal(seen[0], prepared.position_ids)
    following = decoded_positions(prepared.position_ids)
    assert np.array_equal(np.concatenate(seen[1:], axis=2), following)
    if kinds == "l":
        # Here rope_deltas, which start from the highest position of the prompt, would go on elsewhere.
        assert prepared.position_ids.max() + 1 > following[:, 0, 0].max()


def test_what_generate_feeds_after_a_prompt_that_ends_in_a_picture(altered, model):
    """No template does it, but the axes then go on apart."""
    folder = altered()
    (folder / "chat_template.jinja").write_text("<|IMAGE_START|><|IMAGE_PLACEHOLDER|>")
    prepared = Preprocessor.from_folder(folder).prepare(messages("i"))
    seen = fed_positions(model, prepared.arrays)
    following = decoded_positions(prepared.position_ids)
    assert len(set(following[:, 0, 0])) > 1
    assert np.array_equal(np.concatenate(seen[1:], axis=2), following)


def test_what_generate_feeds_a_padded_batch(altered, model):
    preprocessor = Preprocessor.from_folder(altered())
    prompts = [preprocessor.prepare(messages(kinds)) for kinds in ("it", "vti", "t")]
    length = max(p.arrays["input_ids"].shape[1] for p in prompts)

    def pad(name: str, value: int) -> np.ndarray:
        rows = [p.arrays[name][0] for p in prompts]
        return np.stack([np.pad(row, (length - len(row), 0), constant_values=value) for row in rows])

    names = ("input_ids", "attention_mask", "mm_token_type_ids", "moe_mm_token_type_ids")
    arrays = {name: pad(name, 0) for name in names}
    for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        arrays[name] = np.concatenate([p.arrays[name] for p in prompts if name in p.arrays])
    positions = rope_positions(
        arrays["input_ids"],
        arrays["mm_token_type_ids"],
        arrays["image_grid_thw"],
        arrays["video_grid_thw"],
        arrays["attention_mask"],
    )
    for row, prompt in enumerate(prompts):
        alone = prompt.position_ids[:, 0]
        assert np.array_equal(positions[:, row, length - alone.shape[1] :], alone)
    seen = fed_positions(model, arrays)
    assert np.array_equal(seen[0], positions)
    assert np.array_equal(np.concatenate(seen[1:], axis=2), decoded_positions(positions))


def test_adjacent_pictures_are_split_by_their_grids(model):
    """The reference takes two runs of one kind for one, and fails; ours is what it gives for them one at a time."""
    import torch

    images = np.array([[1, 4, 6], [1, 2, 8]])
    types = np.array([[0, 0, *[1] * 6, *[1] * 4, 0]])
    positions = rope_positions(types, types, images)
    reference = SimpleNamespace(one=model.model.get_vision_position_ids)
    first = reference.one(2, torch.from_numpy(images[0]), 1, 2)
    second = reference.one(2 + 3, torch.from_numpy(images[1]), 1, 2)
    assert np.array_equal(positions[:, 0, 2:12], np.concatenate([first, second], axis=1))
    assert positions[:, 0, 12].tolist() == [2 + 3 + 4] * 3
    with pytest.raises(RuntimeError):
        ids = torch.from_numpy(types)
        model.model.get_rope_index(ids, ids, torch.from_numpy(images))
