"""What the vision encoder and the resampler make of pictures and clips: computed live, or once for a stock of them."""

from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch
import torchvision_operators  # noqa: F401
from conversations import Source
from mini_batches import media_tokens, pixels
from scenes import Picture, Video, draw_picture, draw_video
from torch import distributed as dist
from transformers import Ernie4_5_VLMoeForConditionalGeneration

CHUNK = 64  # pictures or clips in one call of the encoder


class Features(Protocol):
    """Gives the features of a batch's media."""

    def __call__(self, media: list[Picture | Video]) -> torch.Tensor:
        """Return the features (n, hidden) of all media, one after the other."""


class LiveFeatures:
    """Features by the encoder as it is now, with gradients."""

    def __init__(self, model: Ernie4_5_VLMoeForConditionalGeneration, font_file: Path) -> None:
        self.model = model
        self.font_file = font_file

    def __call__(self, media: list[Picture | Video]) -> torch.Tensor:
        found: list[torch.Tensor | None] = [None] * len(media)
        for kind, features in (
            (Picture, self.model.model.get_image_features),
            (Video, self.model.model.get_video_features),
        ):
            where = [index for index, medium in enumerate(media) if isinstance(medium, kind)]
            if where:
                flat, grids = zip(*(pixels(media[index], self.font_file) for index in where), strict=True)
                split = features(torch.cat(flat), torch.tensor(grids)).pooler_output
                for index, part in zip(where, split, strict=True):
                    found[index] = part
        return torch.cat(found)


class StockedFeatures:
    """A stock of pictures and clips whose features were computed once, for training with a frozen encoder.

    Every worker computes its part; then all have all of it.
    """

    def __init__(self, live: LiveFeatures, seed: str, pictures: int, videos: int) -> None:
        rng = Random(seed)
        drawn = [*(draw_picture(rng) for _ in range(pictures)), *(draw_video(rng) for _ in range(videos))]
        parts = [
            part for start in range(0, len(drawn), CHUNK) for part in _computed(live, drawn[start : start + CHUNK])
        ]
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, (drawn, parts))
        media = [medium for drawn, _ in gathered for medium in drawn]
        self.features = {
            id(medium): part for drawn, parts in gathered for medium, part in zip(drawn, parts, strict=True)
        }
        self.pictures = [medium for medium in media if isinstance(medium, Picture)]
        self.videos = [medium for medium in media if isinstance(medium, Video)]

    def source(self) -> Source:
        """Return the stock as a source of conversations."""
        return Source(lambda rng: rng.choice(self.pictures), lambda rng: rng.choice(self.videos))

    def __call__(self, media: list[Picture | Video]) -> torch.Tensor:
        return torch.cat([self.features[id(medium)] for medium in media])


def _computed(live: LiveFeatures, media: list[Picture | Video]) -> list[torch.Tensor]:
    """Return the features of each medium, and forget how it was drawn."""
    with torch.no_grad():
        table = live(media)
    for medium in media:
        medium.__dict__.pop("image", None)
        medium.__dict__.pop("clip", None)
    return [part.clone() for part in table.split([media_tokens(medium) for medium in media])]
