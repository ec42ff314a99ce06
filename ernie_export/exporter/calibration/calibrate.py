"""Calibration: quantize the decoder's weights for the inputs that a user's own conversations produce (see gptq.py).

The decoder runs one layer at a time over all conversations, its weights read from the checkpoint, so that memory stays
at one layer in 8 bits and a few matrices, whatever the model's size. The next layer gets what this one gives before it
is rounded: every statistic is the model's own.

The experts of one modality share the statistics of their input: those of all tokens of that modality. The input of an
expert's down projection is its own, and so are its statistics: those of the tokens that were routed to it. An expert
that is seldom chosen would be fitted to a handful of tokens, so a sample of its modality's tokens joins in, with a
weight of `PRIOR` tokens altogether. Experts of a modality that no token has are quantized as without calibration.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from ernie_export.common.image_sizes import MAX_IMAGE_PIXELS
from ernie_export.common.manifest import sha256
from ernie_export.common.manifest_sections import CalibrationInfo
from ernie_export.exporter.calibration.gptq import cholesky_factor, column_blocks, quantize_rows
from ernie_export.exporter.calibration.layer import LayerGraph, build, run
from ernie_export.exporter.calibration.prompts import Prompts, VisionEncoder, read_prompts
from ernie_export.exporter.weights.quantized_store import QuantizedStore
from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.config import ErnieConfig, TextConfig
from ernie_export.graphs.ops.bodies import OpBodies
from ernie_export.graphs.weight_spec import Interleaved, Piece, Rows, Weight

PRIOR = 16
SAMPLE = 512
BATCH = 4096  # tokens
MODALITIES = ("text", "vision")


@dataclass(frozen=True)
class LayerStats:
    """Statistics of one layer's inputs over all conversations.

    Attributes:
        hessians: The sums of xᵀx over all tokens, one (K, K) float64 matrix for each column block of a linear input
            (see `LayerGraph`), by the input's name.
        x: The experts' inputs (tokens, hidden) float32; no rows in a dense layer.
        experts: The chosen experts (tokens, k) int64; no rows in a dense layer.
    """

    hessians: dict[str, list[np.ndarray]]
    x: np.ndarray
    experts: np.ndarray


@dataclass(frozen=True)
class Decoder:
    """The decoder whose `weights`, as the bundle stores them, are quantized from `checkpoint` into `store`."""

    text: TextConfig
    checkpoint: Checkpoint
    weights: dict[str, Weight]
    store: QuantizedStore

    def matrix(self, name: str) -> np.ndarray:
        """Read a whole tensor of the checkpoint as float32."""
        return self.checkpoint.read_rows(name, 0, self.checkpoint.tensors[name].shape[0]).astype(np.float32)

    def round(self, piece: Piece, values: np.ndarray, factors: list[tuple[slice, np.ndarray]], name: str) -> None:
        """Quantize `values`, a `piece` of the weight `name`, and put the result into the store.

        Args:
            piece: The piece that the values are.
            values: Its matrix (rows, K) float32.
            factors: The Cholesky factor of each column block, as `quantize_rows` takes them.
            name: The weight's name.
        """
        quantization = self.weights[name].quantization
        assert quantization is not None
        self.store.put(piece, *quantize_rows(values, factors, quantization))


def calibrate(
    path: Path,
    processors: Path,
    config: ErnieConfig,
    checkpoint: Checkpoint,
    graphs: dict[str, GraphBuilder],
    op_bodies: OpBodies,
    store: QuantizedStore,
    share: Callable[[str, float], None],
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> CalibrationInfo:
    """Quantize the weights of the decoder's layers for the inputs that given conversations produce.

    Args:
        path: The conversations; see `read_prompts`.
        processors: The folder of the tokenizer and the image processors.
        config: The model's configuration.
        checkpoint: The weights.
        graphs: The graphs by name; their `weights` say how each one is stored.
        op_bodies: The operators' bodies that ONNX Runtime executes here.
        store: Receives the quantized weights; its folder also holds scratch files.
        share: Called with a step's name and the fraction done, 0 to 1.
        max_image_pixels: Most pixels of an image, or of a video's frame.

    Returns:
        What the manifest records of the calibration.

    Raises:
        UserError: The conversations cannot be used.
    """
    share("Reading the conversations", 0.0)
    encoder = VisionEncoder(graphs, op_bodies, checkpoint, store.folder)
    prompts = read_prompts(path, processors, config, checkpoint, encoder, store.folder, max_image_pixels)
    del encoder  # and with it its sessions' copies of the weights
    share("Reading the conversations", 1.0)
    name = f"Calibrating on {len(prompts.lengths)} conversations of {sum(prompts.lengths)} tokens"
    decoder = Decoder(config.text, checkpoint, graphs["decoder"].weights, store)
    layers = config.text.num_layers
    for index in range(layers):
        share(name, index / layers)
        built = build(config.text, index)
        stats = observe(built, decoder, index, prompts, op_bodies)
        round_linear_layers(built, stats, decoder)
        for number, modality in enumerate(MODALITIES if built.experts else ()):
            share(name, (index + (1 + number) / 3) / layers)
            round_experts(modality, index, stats, prompts.token_types, decoder)
    share(name, 1.0)
    return CalibrationInfo(sha256(path), prompts.sha256, len(prompts.lengths), sum(prompts.lengths))


def observe(built: LayerGraph, decoder: Decoder, index: int, prompts: Prompts, op_bodies: OpBodies) -> LayerStats:
    """Run one layer over all conversations and return the statistics of its inputs."""
    text = decoder.text
    folder = decoder.store.folder
    total = sum(prompts.lengths)
    hessians: dict[str, list[np.ndarray]] = {}
    x = np.empty((0, text.hidden_size), np.float32)
    experts = np.empty((0, text.experts_per_token), np.int64)
    if built.experts:  # what they were given lies in a file: it grows with the tokens
        x = scratch_array(folder / "x", total, text.hidden_size)
        experts = np.empty((total, text.experts_per_token), np.int64)
    for span, outputs in run(built, text, index, prompts, decoder.checkpoint, op_bodies, folder):
        for linear_input, names in built.linear_inputs.items():
            hessians[linear_input] = add_squares(hessians.get(linear_input), outputs[linear_input])
            if any(".experts." in name for name in names):
                x[span] = outputs[linear_input]
                experts[span] = outputs["experts"]
    return LayerStats(hessians, x, experts)


def add_squares(sums: list[np.ndarray] | None, x: np.ndarray) -> list[np.ndarray]:
    """Add xᵀx of x (tokens, K) float32 to `sums`, one float64 matrix for each column block, and return them."""
    parts = column_blocks(x.shape[1])
    sums = sums or [np.zeros((span.stop - span.start,) * 2) for span in parts]
    for total, span in zip(sums, parts, strict=True):
        total += x[:, span].T @ x[:, span]
    return sums


def sum_of_squares(chunks: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Return `add_squares` over all chunks; there must be at least one."""
    sums = None
    for x in chunks:
        sums = add_squares(sums, x)
    assert sums is not None
    return sums


def batches(tokens: np.ndarray) -> Iterator[np.ndarray]:
    """Split `tokens` into parts, so that their inputs need not all be in memory."""
    return (tokens[first : first + BATCH] for first in range(0, tokens.size, BATCH))


def cholesky_factors(hessians: list[np.ndarray]) -> list[tuple[slice, np.ndarray]]:
    """Return each column block with its Cholesky factor, as `quantize_rows` takes them."""
    spans = column_blocks(sum(len(hessian) for hessian in hessians))
    return [(span, cholesky_factor(hessian)) for span, hessian in zip(spans, hessians, strict=True)]


def round_linear_layers(built: LayerGraph, stats: LayerStats, decoder: Decoder) -> None:
    """Quantize all weights of the layer that every token is multiplied by."""
    for linear_input, names in built.linear_inputs.items():
        shared = [name for name in names if ".experts." not in name]
        factors = cholesky_factors(stats.hessians.pop(linear_input)) if shared else []
        for name in shared:
            for piece in decoder.weights[name].pieces:
                assert isinstance(piece, Rows)
                decoder.round(piece, decoder.matrix(piece.source), factors, name)


def round_experts(modality: str, index: int, stats: LayerStats, token_types: np.ndarray, decoder: Decoder) -> None:
    """Quantize all experts of one modality in layer `index`.

    Args:
        modality: "text" or "vision".
        index: The layer.
        stats: The layer's input statistics.
        token_types: (tokens,) int64; 0 is text.
        decoder: The weights and their store.
    """
    first_expert = MODALITIES.index(modality) * decoder.text.num_experts
    tokens = np.flatnonzero((token_types != 0) == (modality == "vision"))
    if not tokens.size:
        return
    factors = cholesky_factors(sum_of_squares(stats.x[some] for some in batches(tokens)))
    sample = stats.x[tokens[:: -(-tokens.size // SAMPLE)]]
    gate_up, down = (f"model.layers.{index}.mlp.experts.{modality}.{name}_proj" for name in ("gate_up", "down"))
    pieces = zip(decoder.weights[gate_up].pieces, decoder.weights[down].pieces, strict=True)
    for expert, (pair, rows) in enumerate(pieces, first_expert):
        assert isinstance(pair, Interleaved) and isinstance(rows, Rows)
        gate, up = decoder.matrix(pair.gate), decoder.matrix(pair.up)
        decoder.round(pair, np.stack([gate, up], axis=1).reshape(-1, gate.shape[1]), factors, gate_up)
        own = tokens[(stats.experts[tokens] == expert).any(axis=1)]
        prior = product(sample, gate, up) * np.float32(math.sqrt(PRIOR / len(sample)))
        sums = sum_of_squares(chain([prior], (product(stats.x[some], gate, up) for some in batches(own))))
        decoder.round(rows, decoder.matrix(rows.source), cholesky_factors(sums), down)


def product(x: np.ndarray, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Return silu(x gateᵀ) · (x upᵀ), (tokens, I): the input of an expert's down projection."""
    gated = x @ gate.T
    with np.errstate(over="ignore"):  # exp(88.8) is infinite in float32, and its quotient 0, as it should be
        activated: np.ndarray = gated / (1 + np.exp(-gated)) * (x @ up.T)
        return activated


def scratch_array(path: Path, *shape: int) -> np.ndarray:
    """Make a float32 array in a new file, reserving its disk space; raise OSError if there is too little."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
    return np.memmap(path, np.float32, "r+", shape=shape)
