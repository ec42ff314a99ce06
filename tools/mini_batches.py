"""Training batches: samples that share a layout, preprocessed by a quick twin of the reference processor.

The twin serves training only (same-size pictures need no resize, so it is short); accuracy is measured through
`Ernie4_5_VLMoeProcessor` itself, see `mini_eval.py`.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision_operators  # noqa: F401
from mini_checkpoint import CLIP_MEAN, CLIP_STD, MEDIA_TOKENS
from PIL import Image, ImageDraw, ImageFont
from scenes import Clip, Sample
from transformers import LlamaTokenizer

PATCH, MERGE = 14, 2


def parts(sample: Sample, kind: str) -> list[Any]:
    """The pictures (`kind` "image") or clips ("video") of a conversation, in order; paths where they are files."""
    found = [part for turn in sample.messages for part in turn["content"] if part["type"] == kind]
    return [part[kind] if kind in part else part["path"] for part in found]


@lru_cache(maxsize=4096)
def _ink(label: str, width: int, size: int, font_file: str) -> tuple[np.ndarray, np.ndarray]:
    """What drawing a label does to the strip below it: pixels become `strip * keep + paint`, float32 (rows, width, 3).

    Black text over a white outline is opaque, so both follow from drawing it on black and on white once.
    """
    drawn = []
    for ground in (0, 255):
        image = Image.new("RGB", (width, 2 * size), (ground,) * 3)
        font, outline = ImageFont.truetype(font_file, size), int(size * 0.1)
        ImageDraw.Draw(image).text(
            (0, 0), label, font=font, fill=(0, 0, 0), stroke_width=outline, stroke_fill=(255, 255, 255)
        )
        drawn.append(np.asarray(image, np.float32))
    return (drawn[1] - drawn[0]) / 255, drawn[0]


def stamp(clip: Clip, font_file: Path) -> np.ndarray:
    """Draw the time on every frame as the reference does (to one grey level), and even out an odd count."""
    frames = np.concatenate([clip.frames, clip.frames[-1:]]) if len(clip.frames) % 2 else clip.frames.copy()
    size = int(min(frames.shape[1:3]) * 0.1)
    for index, frame in enumerate(frames):
        seconds = min(index, len(clip.frames) - 1) / clip.fps
        label = f"time: {int(seconds // 3600):02d}:{int(seconds % 3600 // 60):02d}:{seconds % 60:05.02f}"
        keep, paint = _ink(label, frame.shape[1], size, str(font_file))
        frame[: 2 * size] = frame[: 2 * size] * keep + paint + 0.5
    return frames


_SCALE = 1 / (255 * torch.tensor(CLIP_STD))[:, None]
_SHIFT = (torch.tensor(CLIP_MEAN) / torch.tensor(CLIP_STD))[:, None]


def patches(frames: np.ndarray) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """uint8 (t, H, W, 3) to float32 (t·h·w, 588) in 2×2-block-major order, and its grid (t, h, w)."""
    t, height, width, _ = frames.shape
    h, w = height // PATCH, width // PATCH
    blocks = torch.from_numpy(frames).view(t, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH, 3)
    flat = blocks.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(t * h * w, 3, PATCH * PATCH)
    return flat.float().mul_(_SCALE).sub_(_SHIFT).flatten(1), (t, h, w)


def positions(types: list[int], grids: dict[int, list[tuple[int, int, int]]]) -> np.ndarray:
    """int64 (3, n): t, h, w positions of a prompt with token types 0 text, 1 image, 2 video, as the class counts."""
    media = {kind: iter(found) for kind, found in grids.items()}
    columns, start = [], 0
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


@dataclass(frozen=True)
class Batcher:
    """Packs scenes into the model's keyword arguments plus `labels` (-100 where nothing is asked).

    Questions about one scene share its media: a row holds the shared prompt once, then each question with its answer.
    The mask lets a question see the shared part and itself, and its positions continue from the shared part, so every
    question is computed as if it stood alone.
    """

    tokenizer: LlamaTokenizer
    font_file: Path

    def __call__(self, scenes: list[list[Sample]]) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """Model arguments, labels (batch, length), and which of a row's samples (from 1, 0 none) each token is of."""
        media: dict[str, list[tuple[torch.Tensor, tuple[int, int, int]]]] = {"image": [], "video": []}
        rows = [self._row(samples, media) for samples in scenes]
        width = max(len(ids) for ids, *_ in rows)
        ids, labels, owner = (torch.full((len(rows), width), fill) for fill in (self.tokenizer.pad_token_id, -100, -1))
        places = torch.zeros(3, len(rows), width, dtype=torch.long)
        for index, (row, wanted, owned, where) in enumerate(rows):
            ids[index, : len(row)], labels[index, : len(row)] = torch.tensor(row), torch.tensor(wanted)
            owner[index, : len(row)], places[:, index, : len(row)] = torch.tensor(owned), torch.from_numpy(where)
        seen = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
        out = {"input_ids": ids, "position_ids": places, "attention_mask": seen.tril()[:, None]}
        out["moe_mm_token_type_ids"] = torch.zeros_like(ids)
        for name, token in MEDIA_TOKENS.items():
            where = ids == self.tokenizer.convert_tokens_to_ids(token)
            out["moe_mm_token_type_ids"][where] = 1 if name.startswith("image") else 2
        for kind, suffix in (("image", ""), ("video", "_videos")):
            if media[kind]:
                out[f"pixel_values{suffix}"] = torch.cat([flat for flat, _ in media[kind]])
                out[f"{kind}_grid_thw"] = torch.tensor([grid for _, grid in media[kind]])
        return out, labels, owner

    def _row(self, samples: list[Sample], media: dict[str, list]) -> tuple[list[int], list[int], list[int], np.ndarray]:
        grids: dict[int, list[tuple[int, int, int]]] = {1: [], 2: []}
        counts: dict[str, list[int]] = {"image": [], "video": []}
        for code, kind in ((1, "image"), (2, "video")):
            for source in parts(samples[0], kind):
                flat, grid = patches(np.array(source)[None] if kind == "image" else stamp(source, self.font_file))
                media[kind].append((flat, grid))
                grids[code].append(grid)
                counts[kind].append(len(flat) // (4 if kind == "image" else 8))
        prompts = [self._prompt(sample, counts) for sample in samples]
        shared = next(
            i for i in range(min(map(len, prompts))) if len({p[i] for p in prompts}) > 1 or i + 1 == len(prompts[0])
        )
        codes = {
            self.tokenizer.convert_tokens_to_ids(MEDIA_TOKENS[f"{kind}_token"]): code
            for code, kind in ((1, "image"), (2, "video"))
        }
        row, labels, owner = prompts[0][:shared], [-100] * shared, [0] * shared
        where = [positions([codes.get(token, 0) for token in row], grids)]
        start = int(where[0][:, -1].max()) + 1
        for number, (sample, prompt) in enumerate(zip(samples, prompts, strict=True), 1):
            answer = [*self.tokenizer(sample.answer).input_ids, self.tokenizer.eos_token_id]
            tail = prompt[shared:]
            row += tail + answer
            labels += [-100] * len(tail) + answer
            owner += [number] * (len(tail) + len(answer))
            where.append(
                np.broadcast_to(np.arange(start, start + len(tail) + len(answer)), (3, len(tail) + len(answer)))
            )
        return row, labels, owner, np.concatenate(where, axis=1)

    def _prompt(self, sample: Sample, counts: dict[str, list[int]]) -> list[int]:
        text = self.tokenizer.apply_chat_template(sample.messages, tokenize=False, add_generation_prompt=True)
        for kind, numbers in counts.items():
            token = MEDIA_TOKENS[f"{kind}_token"]
            head, *tails = text.split(token)
            text = head + "".join(token * n + tail for n, tail in zip(numbers, tails, strict=True))
        return self.tokenizer(text).input_ids
