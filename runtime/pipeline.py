"""A bundle, loaded: messages in, answers out."""

from collections.abc import Generator
from collections.abc import Sequence as Several
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast, overload

import numpy as np
from ernie_export.graphs.errors import UserError
from ernie_export.graphs.manifest import Manifest
from ernie_export.runtime.engines import Engine
from ernie_export.runtime.engines.onnxruntime import OnnxRuntimeEngine
from ernie_export.runtime.generation import Batch, Prompt, Sequence
from ernie_export.runtime.preprocess import Prepared, Preprocessor
from ernie_export.runtime.sampling import Sampler, SamplingParams
from ernie_export.runtime.text_stream import TextStream
from ernie_export.runtime.vision_features import encode_media

# Files up to this size are hashed whole on load (0.2 s for one of this size); a larger one's size alone is compared.
HASH_LIMIT = 256 * 2**20
# Conversations that decode together; a further one waits for a row.
ROWS = 16

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Result:
    """An answer. tokens: ids without the prompt's; finish_reason: "stop" (the model or a stop string) or "length"."""

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish_reason: str


def load(bundle: str | Path, threads: int | None = None, check: bool = False) -> "Model":
    """Load a bundle. `threads`: cores for one operator (default: all); `check`: hash the large files too.

    Raises UserError if the folder is no bundle, or a file is missing or not the one that the manifest lists.
    """
    folder = Path(bundle)
    manifest = Manifest.read(folder)
    manifest.check_files(folder, hash_limit=2**63 if check else HASH_LIMIT)
    return Model(manifest, Preprocessor.from_folder(folder), OnnxRuntimeEngine(folder, manifest, threads))


class Model:
    """Answers messages. Owns its engine: use it in a `with` block, or call `close`."""

    def __init__(self, manifest: Manifest, preprocessor: Preprocessor, engine: Engine) -> None:
        self.manifest = manifest
        self.preprocessor = preprocessor
        self.engine = engine

    def preprocess(self, messages: Messages) -> dict[str, np.ndarray]:
        """The arrays that the reference's processor makes of one conversation, under its names."""
        return self.preprocessor(messages)

    def image_features(self, images: Several[Any]) -> list[np.ndarray]:
        """Features of pictures (paths or PIL images), float32 (tokens, hidden) each, as they enter the decoder."""
        processor = self.preprocessor.images
        return self._features(*processor([processor.load(image) for image in images]))

    def video_features(self, videos: Several[Any]) -> list[np.ndarray]:
        """Features of clips (paths or `Clip`s), float32 (tokens, hidden) each, as they enter the decoder."""
        processor = self.preprocessor.videos
        return self._features(*processor([processor.load(video) for video in videos]))

    def _features(self, pixels: np.ndarray, grids: np.ndarray) -> list[np.ndarray]:
        shapes = [(int(t), int(h), int(w)) for t, h, w in grids]
        if not shapes:
            return []
        items = np.split(pixels, np.cumsum([t * h * w for t, h, w in shapes])[:-1])
        return encode_media(self.engine, items, shapes, self.manifest.model.spatial_merge_size)

    @overload
    def generate(self, messages: Messages, **options: Any) -> Result: ...

    @overload
    def generate(self, messages: list[Messages], **options: Any) -> list[Result]: ...

    def generate(self, messages: Messages | list[Messages], **options: Any) -> Result | list[Result]:
        """Answer one conversation, or several together; `options` are the fields of `SamplingParams`.

        Several answer as each would alone: a request's tokens depend on its own messages, options and seed. (Sums are
        rounded in another order in a batch, by about 1e-7; two tokens equally likely to that degree may swap.)
        """
        params = SamplingParams.from_options(options)
        several = isinstance(messages, list) and bool(messages) and isinstance(messages[0], list)
        conversations = cast(list[Messages], messages if several else [messages])
        sequences = [self.sequence(conversation, params) for conversation in conversations]
        batch = Batch(self.engine, min(len(sequences), ROWS), max(map(Sequence.capacity, sequences), default=0))
        waiting = list(reversed(sequences))
        while waiting or batch.running:
            while waiting and not batch.full:
                batch.add(waiting.pop())
            if batch.running:
                batch.step()
        results = [self._result(sequence) for sequence in sequences]
        return results if several else results[0]

    def stream(self, messages: Messages, **options: Any) -> Generator[str, None, Result]:
        """Answer one conversation piece by piece: yields text, returns the `Result`."""
        sequence = self.sequence(messages, SamplingParams.from_options(options))
        batch = Batch(self.engine, 1, sequence.capacity())
        yield batch.add(sequence)
        while batch.running:
            ((_, piece),) = batch.step()
            yield piece
        return self._result(sequence)

    def sequence(self, messages: Messages, params: SamplingParams) -> Sequence:
        """One conversation as a `Batch` takes it: preprocessed, its media encoded.

        Raises UserError for malformed messages or media, and for a prompt past the model's position limit.
        """
        prepared = self.preprocessor.prepare(messages)
        limit, length = self.manifest.model.max_positions, prepared.arrays["input_ids"].shape[1]
        if length >= limit:
            raise UserError(f"prompt: expected fewer than {limit} tokens (the model's position limit), found {length}")
        prompt = self.prompt(prepared)  # only now: encoding a long clip takes a while
        eos = frozenset(self.manifest.model.eos_token_ids)
        text = TextStream(self.preprocessor.chat.decode, params.stop, self.preprocessor.chat.byte_tokens)
        sampler = Sampler(params, eos, prompt.input_ids)
        return Sequence(prompt, sampler, text, eos, min(params.max_new_tokens, limit - length))

    def prompt(self, prepared: Prepared) -> Prompt:
        """Encode the media of a preprocessed conversation and lay out what the decoder takes."""
        arrays, facts = prepared.arrays, self.manifest.model
        features = encode_media(self.engine, *prepared.media(), facts.spatial_merge_size)
        is_feature = arrays["mm_token_type_ids"][0] != 0
        return Prompt(
            input_ids=arrays["input_ids"][0],
            token_types=arrays["moe_mm_token_type_ids"][0],
            feature_index=np.where(is_feature, np.cumsum(is_feature), 0),
            position_ids=prepared.position_ids[:, 0],
            features=np.concatenate(features) if features else np.zeros((0, facts.hidden_size), np.float32),
        )

    @staticmethod
    def _result(sequence: Sequence) -> Result:
        prompt_tokens = len(sequence.prompt.input_ids)
        return Result(sequence.text.text, tuple(sequence.tokens), prompt_tokens, sequence.finish_reason)

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
