"""Training batches: conversations packed into rows, preprocessed by a quick double of the reference processor.

The double serves training only (same-size pictures need no resize, so it is short); accuracy is measured through
`Ernie4_5_VLMoeProcessor` itself, see `mini_eval.py`.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torchvision_operators  # noqa: F401
from conversations import Sample, media_parts
from mini_checkpoint import CLIP_MEAN, CLIP_STD, MEDIA_TOKENS
from PIL import Image, ImageDraw, ImageFont
from scenes import CLIP_CELLS, Clip, Picture, Video
from transformers import LlamaTokenizer

PATCH = 14
MERGE = 2
IGNORED = -100  # a label that no loss looks at, as PyTorch has it
Grid = tuple[int, int, int]


@lru_cache(maxsize=4096)
def _ink(label: str, width: int, size: int, font_file: str) -> tuple[np.ndarray, np.ndarray]:
    """What drawing a label does to the strip below it: pixels become `strip * keep + paint`, float32 (rows, width, 3).

    Black text over a white outline is opaque, so both follow from drawing it on black and on white once.
    """
    drawn = []
    for ground in (0, 255):
        image = Image.new("RGB", (width, 2 * size), (ground,) * 3)
        font = ImageFont.truetype(font_file, size)
        outline = int(size * 0.1)
        ImageDraw.Draw(image).text(
            (0, 0), label, font=font, fill=(0, 0, 0), stroke_width=outline, stroke_fill=(255, 255, 255)
        )
        drawn.append(np.asarray(image, np.float32))
    return (drawn[1] - drawn[0]) / 255, drawn[0]


def drawn_time(index: int, fps: float) -> str:
    """Return the time that is drawn on a frame."""
    seconds = index / fps
    return f"{int(seconds // 3600):02d}:{int(seconds % 3600 // 60):02d}:{seconds % 60:05.02f}"


def stamp(clip: Clip, font_file: Path) -> np.ndarray:
    """Draw the time on every frame as the reference does (to one grey level), and even out an odd count."""
    frames = np.concatenate([clip.frames, clip.frames[-1:]]) if len(clip.frames) % 2 else clip.frames.copy()
    size = int(min(frames.shape[1:3]) * 0.1)
    for index, frame in enumerate(frames):
        label = f"time: {drawn_time(min(index, len(clip.frames) - 1), clip.fps)}"
        keep, paint = _ink(label, frame.shape[1], size, str(font_file))
        frame[: 2 * size] = frame[: 2 * size] * keep + paint + 0.5
    return frames


_SCALE = 1 / (255 * torch.tensor(CLIP_STD))[:, None]
_SHIFT = (torch.tensor(CLIP_MEAN) / torch.tensor(CLIP_STD))[:, None]


def patches(frames: np.ndarray) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """uint8 (t, H, W, 3) to float32 (t·h·w, 588) in 2×2-block-major order, and its grid (t, h, w)."""
    t, height, width, _ = frames.shape
    h = height // PATCH
    w = width // PATCH
    blocks = torch.from_numpy(frames).view(t, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH, 3)
    flat = blocks.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(t * h * w, 3, PATCH * PATCH)
    return flat.float().mul_(_SCALE).sub_(_SHIFT).flatten(1), (t, h, w)


def positions(types: list[int], grids: dict[int, list[tuple[int, int, int]]]) -> np.ndarray:
    """int64 (3, n): t, h, w positions of a prompt with token types 0 text, 1 image, 2 video, as the class counts."""
    media = {kind: iter(found) for kind, found in grids.items()}
    columns = []
    start = 0
    for kind, run in groupby(types):
        if kind == 0:
            count = len(list(run))
            columns.append(np.broadcast_to(np.arange(start, start + count), (3, count)))
            start += count
        else:
            t, h, w = next(media[kind])
            t, h, w = (t if kind == 1 else t // 2), h // MERGE, w // MERGE
            columns.append(np.indices((t, h, w)).reshape(3, -1) + start)
            start += max(h, w)
    return np.concatenate(columns, axis=1)


def pixels(medium: Picture | Video, font_file: Path) -> tuple[torch.Tensor, Grid]:
    """Return the patches and the grid of a picture or a clip."""
    if isinstance(medium, Picture):
        return patches(np.array(medium.image)[None])
    return patches(stamp(medium.clip, font_file))


def media_grid(medium: Picture | Video) -> Grid:
    """Return the grid of a picture or a clip without drawing it."""
    if isinstance(medium, Picture):
        return 1, MERGE * medium.cells[1], MERGE * medium.cells[0]
    count = len(medium.frames)
    return count + count % 2, MERGE * CLIP_CELLS[1], MERGE * CLIP_CELLS[0]


def media_tokens(medium: Picture | Video) -> int:
    """Return how many tokens a picture or a clip takes."""
    t, h, w = media_grid(medium)
    return t * h * w // (4 if isinstance(medium, Picture) else 8)


@dataclass(frozen=True)
class Batch:
    """Packed conversations; B rows of N tokens.

    Attributes:
        input_ids: int64 (B, N).
        position_ids: int64 (3, B, N).
        attention_mask: bool (B, 1, N, N), true where a token may look.
        types: int64 (B, N): 0 for text, 1 for pictures, 2 for clips, start and end tokens included.
        media: What the rows show; their features follow each other in one table.
        numbers: The number of each of the media in its row, from 1, pictures and clips apart.
        media_counts: How many of the media each row shows.
        features: int64 (B, N), the row of that table for a placeholder, -1 elsewhere.
        labels: int64 (B, N), IGNORED where nothing is asked.
        weights: float32 (B, N) of the labels: an answer of n tokens counts as much as the square root of n,
            its first token perhaps more.
        owner: int64 (B, N), from 1 the sample of the row that a token belongs to; 0 where shared, -1 for pads.
        samples: The samples of each row.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    types: torch.Tensor
    media: list[Picture | Video]
    numbers: list[int]
    media_counts: list[int]
    features: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    owner: torch.Tensor
    samples: list[list[Sample]]


@dataclass
class _Prompt:
    """Token ids, the feature row of each token (-1 for none), and positions (3, n) of one rendered conversation."""

    ids: list[int]
    features: list[int]
    positions: np.ndarray


class Batcher:
    """Packs the samples of conversations into rows.

    The samples of one conversation share turns: a row holds the longest prompt once, and for each sample the tokens in
    which its prompt differs, with its answer. A sample's tokens see the shared beginning of its prompt and each other,
    and their positions continue from there, so every question is computed as if it stood alone.

    Args:
        tokenizer: The checkpoint's.
        first: The weight of the first token of each answer; None where it is that of the answer's other tokens.
    """

    def __init__(self, tokenizer: LlamaTokenizer, first: float | None = None) -> None:
        self.tokenizer = tokenizer
        self.first = first
        self.codes = {
            tokenizer.convert_tokens_to_ids(token): 1 if name.startswith("image") else 2
            for name, token in MEDIA_TOKENS.items()
        }
        self.placeholders = {tokenizer.convert_tokens_to_ids(MEDIA_TOKENS[f"{k}_token"]) for k in ("image", "video")}

    def __call__(self, conversations: list[list[Sample]]) -> Batch:
        """Return a batch of one row for each conversation."""
        return self.pack([self.row(samples) for samples in conversations])

    def pack(self, rows: list["Row"]) -> Batch:
        """Return a batch of rows, padded to the longest."""
        shape = (len(rows), max(len(row.ids) for row in rows))
        ids = torch.full(shape, self.tokenizer.pad_token_id)
        labels = torch.full(shape, IGNORED)
        features = torch.full(shape, -1)
        owner = torch.full(shape, -1)
        sees = torch.zeros(shape, dtype=torch.long)
        weights = torch.zeros(shape)
        starts = np.cumsum([0, *(sum(map(media_tokens, row.media)) for row in rows)])
        positions = torch.zeros(3, *shape, dtype=torch.long)
        for index, row in enumerate(rows):
            end = len(row.ids)
            ids[index, :end], labels[index, :end] = torch.tensor(row.ids), torch.tensor(row.labels)
            shown = torch.tensor(row.features)
            features[index, :end] = torch.where(shown < 0, shown, shown + starts[index])
            owner[index, :end] = torch.tensor(row.owner)
            sees[index, :end], weights[index, :end] = torch.tensor(row.sees), torch.tensor(row.weights)
            positions[:, index, :end] = torch.from_numpy(np.concatenate(row.positions, axis=1))
        shared = (owner[:, None, :] == 0) & (torch.arange(shape[1]) < sees[:, :, None])
        mask = (shared | (owner[:, None, :] == owner[:, :, None])).tril()[:, None]
        types = torch.zeros_like(ids)
        for token, code in self.codes.items():
            types[ids == token] = code
        media = [medium for row in rows for medium in row.media]
        numbers = [number for row in rows for number in _numbers(row.media)]
        samples = [row.samples for row in rows]
        counts = [len(row.media) for row in rows]
        return Batch(ids, positions, mask, types, media, numbers, counts, features, labels, weights, owner, samples)

    def row(self, samples: list[Sample]) -> "Row":
        """Return the row of one conversation."""
        media: list[Picture | Video] = []
        prompts = [self._prompt(sample, media) for sample in samples]
        trunk = max(prompts, key=lambda prompt: len(prompt.ids))
        length = len(trunk.ids)
        row = Row(
            samples=samples,
            media=media,
            ids=list(trunk.ids),
            features=list(trunk.features),
            positions=[trunk.positions],
            labels=[IGNORED] * length,
            weights=[0.0] * length,
            owner=[0] * length,
            sees=[length] * length,
        )
        for number, (sample, prompt) in enumerate(zip(samples, prompts, strict=True), 1):
            # At least one token of the prompt stands before the answer: it predicts its first token.
            shared = _common(prompt, trunk, min(len(prompt.ids) - 1, len(trunk.ids)))
            answer = [*self.tokenizer(sample.answer).input_ids, self.tokenizer.eos_token_id]
            tail = prompt.ids[shared:]
            count = len(prompt.ids) - shared + len(answer)
            row.ids += tail + answer
            row.features += prompt.features[shared:] + [-1] * len(answer)
            row.labels += [IGNORED] * len(tail) + answer
            each = len(answer) ** -0.5
            row.weights += [0.0] * len(tail) + [self.first or each] + [each] * (len(answer) - 1)
            row.owner += [number] * count
            row.sees += [shared] * count
            start = int(prompt.positions[:, -1].max()) + 1
            after = np.broadcast_to(np.arange(start, start + len(answer)), (3, len(answer)))
            row.positions += [prompt.positions[:, shared:], after]
        return row

    def _prompt(self, sample: Sample, media: list[Picture | Video]) -> _Prompt:
        text = self.tokenizer.apply_chat_template(
            sample.messages,
            tools=list(sample.tools) or None,
            enable_thinking=sample.thinking,
            tokenize=False,
            add_generation_prompt=True,
        )
        shown = iter(media_parts(sample, "image", "video"))
        ids = []
        features = []
        grids = {1: [], 2: []}
        for token in self.tokenizer(text).input_ids:
            if token not in self.placeholders:
                ids.append(token)
                features.append(-1)
                continue
            medium = next(shown)
            grids[self.codes[token]].append(media_grid(medium))
            count = media_tokens(medium)
            if not any(medium is known for known in media):
                media.append(medium)
            before = next(index for index, known in enumerate(media) if known is medium)
            start = sum(map(media_tokens, media[:before]))
            ids += [token] * count
            features += range(start, start + count)
        types = [self.codes[token] if token in self.placeholders else 0 for token in ids]
        return _Prompt(ids, features, positions(types, grids))


def _numbers(media: list[Picture | Video]) -> list[int]:
    """Return the number of each of a row's media among those of its kind, from 1."""
    seen: Counter[type] = Counter()
    numbers = []
    for medium in media:
        seen[type(medium)] += 1
        numbers.append(seen[type(medium)])
    return numbers


def _common(left: _Prompt, right: _Prompt, limit: int) -> int:
    """Return how many tokens two prompts share at their beginning, at most `limit`."""
    pairs = zip(left.ids, left.features, right.ids, right.features, strict=False)
    return next((i for i, (a, b, c, d) in enumerate(pairs) if i == limit or a != c or b != d), limit)


@dataclass
class Row:
    """One row of a batch under construction; the lists are as long as the row."""

    samples: list[Sample]
    media: list[Picture | Video]
    ids: list[int]
    features: list[int]
    positions: list[np.ndarray]
    labels: list[int]
    weights: list[float]
    owner: list[int]
    sees: list[int]
