"""The first part of the run: the vision encoder and the resampler learn alone, from what each cell of a medium shows.

A loss at the answers reaches the encoder through the whole decoder, and reads drawn digits late or never; labels of
each cell teach it in minutes. Afterwards both are frozen, and media come from a stock whose features are computed once.
"""

from collections import defaultdict
from random import Random

import torch
from mini_features import LiveFeatures
from mini_heads import CELL_HEADS, Heads, cell_labels
from mini_muon import average_gradients, build_optimisers, set_rates
from rich.console import Console
from scenes import draw_appearing, draw_picture, draw_video
from torch import nn

STEPS = 320
WARMUP = 20
PICTURES = 20  # of one step of one worker
CLIPS = 8
SHORT_CLIPS = 8  # of two frames: more of them, so that more drawn times are read
RATE = 2e-3
MUON_RATE = 0.02


def sight_parameters(live: LiveFeatures) -> dict[str, nn.Parameter]:
    """Return the parameters of the encoder and the resampler, by name."""
    model = live.model.model
    parts = (("vision_tower", model.vision_tower), ("resampler_model", model.resampler_model))
    return {f"{name}.{key}": p for name, part in parts for key, p in part.named_parameters()}


def learn_to_see(live: LiveFeatures, seed: int, rank: int, console: Console, steps: int = STEPS) -> None:
    """Train the encoder and the resampler."""
    learned = sight_parameters(live)
    heads = Heads(CELL_HEADS, live.model.config.text_config.hidden_size)
    named = learned | {f"heads.{name}": p for name, p in heads.named_parameters()}
    optimisers = build_optimisers(named, RATE, MUON_RATE)
    everything = list(named.values())
    hits: dict[str, list[float]] = defaultdict(list)
    for step in range(steps):
        rng = Random(f"sight/{seed}/{step}/{rank}")
        media = [draw_picture(rng) for _ in range(PICTURES)]
        media += [draw_video(rng) for _ in range(CLIPS)]
        media += [draw_appearing(rng, 2) for _ in range(SHORT_CLIPS)]
        parts = [cell_labels(medium) for medium in media]
        labels = {name: torch.cat([part[name] for part in parts]) for name in CELL_HEADS}
        heads(live(media), labels, hits).backward()
        average_gradients(everything)
        torch.nn.utils.clip_grad_norm_(everything, 1.0)
        set_rates(optimisers, min((step + 1) / WARMUP, 0.02 + 1 - step / steps))
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if (step + 1) % 20 == 0:
            line = " ".join(f"{name} {100 * sum(hit) / len(hit):.1f}" for name, hit in hits.items())
            console.print(f"sight {step + 1} | {line}")
            hits.clear()
