"""Calibration: the decoder's weights rounded for the inputs that a user's own conversations bring them (see gptq.py).

The decoder runs one layer at a time over all conversations, its weights read from the checkpoint, so that memory stays
at one layer in 8 bits and a few matrices, whatever the model's size. The next layer gets what this one gives before it
is rounded: every statistic is the model's own.

The experts of a bank share the statistics of their input: those of all tokens of the bank. The input of an expert's
down projection is its own, and so are its statistics: of the tokens that were routed to it. One that is seldom chosen
would be fitted to a handful of them, so a sample of its bank's tokens joins in, with a weight of `PRIOR` tokens
altogether. A bank that no token reached is rounded as without calibration.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from ernie_export.common.manifest import CalibrationInfo, sha256
from ernie_export.exporter.calibration.gptq import factor, quantize_rows, slabs
from ernie_export.exporter.calibration.layer import LayerGraph, build, run
from ernie_export.exporter.calibration.prompts import Prompts, VisionEncoder, read_prompts
from ernie_export.exporter.weights.code_store import CodeStore
from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.config import ErnieConfig, TextConfig
from ernie_export.graphs.ops.bodies import OpBodies
from ernie_export.graphs.weight_spec import Interleaved, Piece, Rows, Weight

PRIOR = 16
SAMPLE = 512
BATCH = 4096  # tokens
BANKS = ("text", "vision")


@dataclass(frozen=True)
class Seen:
    """What one layer's weights met, of all conversations.

    hessians: of each site (see LayerGraph) and each slab of its width, the sum of xᵀx over the tokens. x: what the
    experts were given, (tokens, hidden), and experts: which were chosen, (tokens, k); of no token in a layer without.
    """

    hessians: dict[str, list[np.ndarray]]
    x: np.ndarray
    experts: np.ndarray


@dataclass(frozen=True)
class Decoder:
    """What is rounded: `weights` as the bundle stores them, from `checkpoint`, into `codes`."""

    text: TextConfig
    checkpoint: Checkpoint
    weights: dict[str, Weight]
    codes: CodeStore

    def matrix(self, name: str) -> np.ndarray:
        """A whole tensor of the checkpoint in float32."""
        return self.checkpoint.read_rows(name, 0, self.checkpoint.tensors[name].shape[0]).astype(np.float32)

    def round(self, piece: Piece, values: np.ndarray, spread: list[tuple[slice, np.ndarray]], name: str) -> None:
        """Keep the codes of a `piece` of the weight `name`."""
        how = self.weights[name].quantization
        assert how is not None
        self.codes.put(piece, *quantize_rows(values, spread, how))


def calibrate(
    path: Path,
    processors: Path,
    config: ErnieConfig,
    checkpoint: Checkpoint,
    graphs: dict[str, GraphBuilder],
    op_bodies: OpBodies,
    codes: CodeStore,
    share: Callable[[str, float], None],
) -> CalibrationInfo:
    """Find `codes` for the quantised weights of the decoder's layers.

    `path`: the conversations, see `read_prompts`, which says what is refused. `share` is told how much is done.
    """
    share("Reading the conversations", 0.0)
    encoder = VisionEncoder(graphs, op_bodies, checkpoint, codes.folder)
    prompts = read_prompts(path, processors, config, checkpoint, encoder, codes.folder)
    del encoder  # and with it its sessions' copies of the weights
    share("Reading the conversations", 1.0)
    name = f"Calibrating on {len(prompts.lengths)} conversations of {sum(prompts.lengths)} tokens"
    decoder = Decoder(config.text, checkpoint, graphs["decoder"].weights, codes)
    layers = config.text.num_layers
    for index in range(layers):
        share(name, index / layers)
        built = build(config.text, index)
        seen = observe(built, decoder, index, prompts, op_bodies)
        round_linear_layers(built, seen, decoder)
        for place, bank in enumerate(BANKS if built.experts else ()):
            share(name, (index + (1 + place) / 3) / layers)
            round_experts(bank, index, seen, prompts.token_types, decoder)
    share(name, 1.0)
    return CalibrationInfo(sha256(path), prompts.sha256, len(prompts.lengths), sum(prompts.lengths))


def observe(built: LayerGraph, decoder: Decoder, index: int, prompts: Prompts, op_bodies: OpBodies) -> Seen:
    """Run one layer over all conversations."""
    text, folder, total = decoder.text, decoder.codes.folder, sum(prompts.lengths)
    hessians: dict[str, list[np.ndarray]] = {}
    x, experts = np.empty((0, text.hidden_size), np.float32), np.empty((0, text.experts_per_token), np.int64)
    if built.experts:  # what they were given lies in a file: it grows with the tokens
        x = scratch_array(folder / "x", total, text.hidden_size)
        experts = np.empty((total, text.experts_per_token), np.int64)
    for span, outputs in run(built, text, index, prompts, decoder.checkpoint, op_bodies, folder):
        for site, names in built.sites.items():
            hessians[site] = add_squares(hessians.get(site), outputs[site])
            if any(".experts." in name for name in names):
                x[span], experts[span] = outputs[site], outputs["experts"]
    return Seen(hessians, x, experts)


def add_squares(sums: list[np.ndarray] | None, x: np.ndarray) -> list[np.ndarray]:
    """`sums` of xᵀx in float64, a slab of columns each, with those of x (tokens, K) float32 added."""
    parts = slabs(x.shape[1])
    sums = sums or [np.zeros((slab.stop - slab.start,) * 2) for slab in parts]
    for total, slab in zip(sums, parts, strict=True):
        total += x[:, slab].T @ x[:, slab]
    return sums


def sum_of_squares(chunks: Iterable[np.ndarray]) -> list[np.ndarray]:
    """`add_squares` of all chunks, of which there is one at least."""
    sums = None
    for x in chunks:
        sums = add_squares(sums, x)
    assert sums is not None
    return sums


def batches(tokens: np.ndarray) -> Iterator[np.ndarray]:
    """`tokens` in parts, so that their inputs need not all be in memory."""
    return (tokens[first : first + BATCH] for first in range(0, tokens.size, BATCH))


def factors(hessians: list[np.ndarray]) -> list[tuple[slice, np.ndarray]]:
    """U of each slab, as `quantize_rows` takes them."""
    places = slabs(sum(len(hessian) for hessian in hessians))
    return [(slab, factor(hessian)) for slab, hessian in zip(places, hessians, strict=True)]


def round_linear_layers(built: LayerGraph, seen: Seen, decoder: Decoder) -> None:
    """All weights of the layer that every token meets."""
    for site, names in built.sites.items():
        shared = [name for name in names if ".experts." not in name]
        spread = factors(seen.hessians.pop(site)) if shared else []
        for name in shared:
            for piece in decoder.weights[name].pieces:
                assert isinstance(piece, Rows)
                decoder.round(piece, decoder.matrix(piece.source), spread, name)


def round_experts(bank: str, index: int, seen: Seen, token_types: np.ndarray, decoder: Decoder) -> None:
    """All experts of one bank of layer `index`."""
    first_expert = BANKS.index(bank) * decoder.text.num_experts
    tokens = np.flatnonzero((token_types != 0) == (bank == "vision"))
    if not tokens.size:
        return
    spread = factors(sum_of_squares(seen.x[some] for some in batches(tokens)))
    sample = seen.x[tokens[:: -(-tokens.size // SAMPLE)]]
    gate_up, down = (f"model.layers.{index}.mlp.experts.{bank}.{name}_proj" for name in ("gate_up", "down"))
    pieces = zip(decoder.weights[gate_up].pieces, decoder.weights[down].pieces, strict=True)
    for expert, (pair, rows) in enumerate(pieces, first_expert):
        assert isinstance(pair, Interleaved) and isinstance(rows, Rows)
        gate, up = decoder.matrix(pair.gate), decoder.matrix(pair.up)
        decoder.round(pair, np.stack([gate, up], axis=1).reshape(-1, gate.shape[1]), spread, gate_up)
        own = tokens[(seen.experts[tokens] == expert).any(axis=1)]
        prior = product(sample, gate, up) * np.float32(math.sqrt(PRIOR / len(sample)))
        met = sum_of_squares(chain([prior], (product(seen.x[some], gate, up) for some in batches(own))))
        decoder.round(rows, decoder.matrix(rows.source), factors(met), down)


def product(x: np.ndarray, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """silu(x gateᵀ) · (x upᵀ), (tokens, I): what an expert's down projection is given."""
    gated = x @ gate.T
    with np.errstate(over="ignore"):  # exp(88.8) is infinite in float32, and its quotient 0, as it should be
        return gated / (1 + np.exp(-gated)) * (x @ up.T)


def scratch_array(path: Path, *shape: int) -> np.ndarray:
    """A float32 array in a new file, all of whose room is taken at once: OSError where there is too little."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
    return np.memmap(path, np.float32, "r+", shape=shape)
