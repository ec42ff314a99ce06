"""A user's conversations as the decoder's first layer gets them: tokens embedded, images and videos encoded."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ernie_export.common.errors import InvalidFile, UserError
from ernie_export.common.image_sizes import MAX_IMAGE_PIXELS
from ernie_export.exporter.weights import writer as weights
from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.ops.bodies import OpBodies
from ernie_export.runtime import messages_file
from ernie_export.runtime.feature_cache import encode_media
from ernie_export.runtime.preprocess import Prepared, Preprocessor


@dataclass(frozen=True)
class Prompts:
    """The tokens of all conversations, one after the other.

    Attributes:
        hidden: (tokens, hidden) float32, in a file, overwritten layer by layer.
        token_types: (tokens,) int64.
        position_ids: (3, tokens) int64.
        lengths: The number of tokens of each conversation.
        sha256: The digest of all token ids and pixels.
    """

    hidden: np.ndarray
    token_types: np.ndarray
    position_ids: np.ndarray
    lengths: tuple[int, ...]
    sha256: str


class VisionEncoder:
    """The vision encoder and the resampler of `graphs`, with their weights in `folder`."""

    def __init__(
        self, graphs: dict[str, GraphBuilder], op_bodies: OpBodies, checkpoint: Checkpoint, folder: Path
    ) -> None:
        parts = {name: graphs[name] for name in ("vision", "resampler")}
        layout = weights.plan([weight for graph in parts.values() for weight in graph.weights.values()])
        weights.write(layout, checkpoint, folder / "vision.safetensors", lambda count: None)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.sessions = {}
        for name, graph in parts.items():
            path = folder / f"{name}.onnx"
            graph.save(path, op_bodies, "vision.safetensors", layout.offsets)
            self.sessions[name] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def encode(self, pixel_values: np.ndarray, coordinates: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """Encode frames of one size (F, P, pixels) into features (pairs, P / 4, hidden)."""
        frames = {"pixel_values": pixel_values, "coordinates": coordinates}
        (hidden,) = self.sessions["vision"].run(["hidden"], frames)
        paired = {"hidden": hidden, "first": pairs[0], "second": pairs[1]}
        features: np.ndarray
        (features,) = self.sessions["resampler"].run(["features"], paired)
        return features


def read_prompts(
    path: Path,
    processors: Path,
    config: ErnieConfig,
    checkpoint: Checkpoint,
    encoder: VisionEncoder,
    folder: Path,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> Prompts:
    """Preprocess and embed conversations.

    A conversation that ends with the assistant's answer is used as it is; to any other, the opening of an answer is
    added.

    Args:
        path: A JSON file of conversations.
        processors: The folder of the tokenizer and the image processors.
        config: The model's configuration.
        checkpoint: The weights, which hold the embedding table.
        encoder: Encodes images and videos.
        folder: Where the embedded tokens are kept.
        max_image_pixels: Most pixels of an image, or of a video's frame.

    Raises:
        UserError: `ernie-run --messages` would refuse a conversation; the message names file and conversation.
    """
    document = messages_file.read(path)
    conversations = [document] if isinstance(document[0], dict) else document
    preprocessor = Preprocessor.from_folder(processors).with_limit(max_image_pixels)
    digest = hashlib.sha256()
    types = []
    positions = []
    lengths = []
    with (folder / "hidden").open("wb") as file:
        for number, messages in enumerate(conversations):
            try:
                answered = isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"
                prepared = preprocessor.prepare(messages, add_generation_prompt=not answered)
            except UserError as e:
                raise UserError(f"{path}: [{number}]: {e}") from e
            length = prepared.arrays["input_ids"].shape[1]
            if length > config.text.max_positions:
                raise InvalidFile(path, f"at most {config.text.max_positions} tokens", length, key=f"[{number}]")
            for name in ("input_ids", "pixel_values", "pixel_values_videos"):
                if name in prepared.arrays:
                    digest.update(np.ascontiguousarray(prepared.arrays[name]).data)
            file.write(embed(prepared, config, checkpoint, encoder).tobytes())
            types.append(prepared.arrays["moe_mm_token_type_ids"][0])
            positions.append(prepared.position_ids[:, 0])
            lengths.append(length)
    return Prompts(
        np.memmap(folder / "hidden", np.float32, "r+").reshape(sum(lengths), config.text.hidden_size),
        np.concatenate(types),
        np.concatenate(positions, axis=1),
        tuple(lengths),
        digest.hexdigest(),
    )


def embed(prepared: Prepared, config: ErnieConfig, checkpoint: Checkpoint, encoder: VisionEncoder) -> np.ndarray:
    """Return the decoder's input (tokens, hidden) float32: rows of the embedding table, and vision features."""
    tokens, indices = np.unique(prepared.arrays["input_ids"][0], return_inverse=True)
    table = [checkpoint.read_rows("model.embed_tokens.weight", token, token + 1) for token in tokens.tolist()]
    hidden = np.concatenate(table).astype(np.float32)[indices]
    if prepared.items:
        features = encode_media(encoder, *prepared.media(), config.vision.spatial_merge_size)
        for item, rows in zip(prepared.items, features, strict=True):
            hidden[item.tokens] = rows
    return hidden
