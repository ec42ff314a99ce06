"""The engines that run a bundle's graphs: one Protocol, one file for each engine.

- `ort_cpu`: ONNX Runtime on the CPU.
- `ort_cuda`: ONNX Runtime's CUDA provider.
- `tensorrt`: compiled engines of TensorRT and of TensorRT for RTX.
- `device`: device memory, the KV cache and decode buffers in it, and the search for a GPU.
- `registry`: which engine runs a bundle on a device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar, runtime_checkable

import numpy as np

from ernie_export.runtime.kv_cache import KVCache
from ernie_export.runtime.logits import Logits

CacheT = TypeVar("CacheT", bound=KVCache)


@dataclass(frozen=True)
class PrefillChunks:
    """Prompt tokens in one prefill call, at most, where nobody asks for others.

    Attention forms scores of these by all tokens so far: fewer save work and memory, and running sequences wait for
    less. More read a layer's experts less often, which is what a GPU spends its time on.

    Attributes:
        alone: Where no sequence decodes.
        while_decoding: While others decode, which wait for the call.
    """

    alone: int = 512
    while_decoding: int = 128


@dataclass(frozen=True)
class PromptChunk:
    """Consecutive tokens of one request's prompt, S of them.

    Attributes:
        input_ids: Token ids (S,) int64.
        token_types: 0 for text, 1 for vision (S,) int64; they choose between text and vision experts.
        feature_index: Row of `features` plus one for each token, 0 for text; (S,) int64.
        position_ids: Temporal, vertical and horizontal positions (3, S) int64.
        features: Features of images and videos (n, hidden) float32.
    """

    input_ids: np.ndarray
    token_types: np.ndarray
    feature_index: np.ndarray
    position_ids: np.ndarray
    features: np.ndarray

    def part(self, start: int, stop: int) -> Self:
        """Return tokens start to stop, with all of the features."""
        return type(self)(
            input_ids=self.input_ids[start:stop],
            token_types=self.token_types[start:stop],
            feature_index=self.feature_index[start:stop],
            position_ids=self.position_ids[:, start:stop],
            features=self.features,
        )

    def decoder_inputs(self, past_length: int) -> dict[str, np.ndarray]:
        """Return the decoder graph's inputs, contiguous, but for `features` and the KV cache."""
        return {
            "input_ids": np.ascontiguousarray(self.input_ids[None]),
            "feature_index": np.ascontiguousarray(self.feature_index[None]),
            "token_types": np.ascontiguousarray(self.token_types[None]),
            "position_ids": np.ascontiguousarray(self.position_ids[:, None]),
            "past_lengths": np.array([past_length]),
            "lengths": np.array([len(self.input_ids)]),
        }


@runtime_checkable
class ChoosesChunks(Protocol):
    """An engine whose prefill calls are best of other lengths than those of `PrefillChunks()`."""

    prefill_chunks: PrefillChunks


@runtime_checkable
class Warmable(Protocol):
    """An engine whose first calls of a size are slow, and can be made before any request comes."""

    def warm(self, max_num_seqs: int, on_progress: Callable[[float], None]) -> None:
        """Run every size of call once, up to `max_num_seqs` sequences that decode together.

        `on_progress` gets the fraction done.
        """
        ...


class Encoder(Protocol):
    """The part of an engine that makes features of frames."""

    def encode(self, pixel_values: np.ndarray, coordinates: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """Run the vision encoder and the resampler over frames of one size.

        Args:
            pixel_values: Patches of each frame (frames, patches, pixels) float32.
            coordinates: Row and column of each patch (patches, 2) int64.
            pairs: The frames that the resampler merges (2, G) int64; an image is paired with itself.

        Returns:
            Features (G, patches / 4, hidden) float32.
        """
        ...


class Engine(Encoder, Protocol[CacheT]):
    """An engine that runs the graphs of one bundle. It owns its sessions and frees them on close.

    Attributes:
        max_prefill_chunk: Most prompt tokens in one call of `prefill`.
    """

    max_prefill_chunk: int

    def new_cache(self, num_slots: int, max_seq_len: int) -> CacheT:
        """Return an empty cache for `num_slots` sequences of up to `max_seq_len` tokens; it may be longer."""
        ...

    def prefill(self, cache: CacheT, slot: int, chunk: PromptChunk) -> Logits:
        """Append the chunk to the slot; returns the logits after its last token.

        Args:
            cache: A cache of this engine.
            slot: The sequence's slot.
            chunk: At most `max_prefill_chunk` tokens.
        """
        ...

    def decode(self, cache: CacheT, tokens: np.ndarray, positions: np.ndarray) -> Sequence[Logits]:
        """Append one text token to each of the first n slots.

        Args:
            cache: A cache of this engine.
            tokens: Token ids (n,) int64.
            positions: Positions of the tokens (3, n) int64.

        Returns:
            The logits of each sequence, valid until the next call.
        """
        ...

    def close(self) -> None:
        """Free everything; the engine cannot be used afterwards."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...
