"""The sections of a bundle's manifest, and how each is read. Every reader raises InvalidFile, naming the key."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ernie_export.common.errors import InvalidFile
from ernie_export.common.json_fields import JsonObject, one_line

# Which GPUs engines run on: the model of GPU that built them, any of its compute capability, any from Ampere (8.0) on.
HARDWARE_COMPATIBILITY = ("exact", "same-capability", "ampere-plus")
LIMIT = 2**63 - 1
T = TypeVar("T")


@dataclass(frozen=True)
class ModelInfo:
    """The sizes and token ids that the runtime needs; sizes in elements, ids in the tokenizer's vocabulary."""

    hidden_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    patch_size: int
    in_channels: int
    spatial_merge_size: int
    temporal_merge_size: int
    image_token_id: int
    image_start_token_id: int
    image_end_token_id: int
    video_token_id: int
    video_start_token_id: int
    video_end_token_id: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class TensorRTInfo:
    """What only TensorRT's engines have, not those of TensorRT for RTX.

    Attributes:
        device: Name of the GPU that built the engines; empty until they are built.
        hardware_compatibility: One of HARDWARE_COMPATIBILITY.
        version_compatible: Whether later TensorRT versions of the same major version run the engines.
        architectures: GPU architectures that the bundle has plugin kernels for, such as "sm90".
        plugin_version: Digest of the sources of plugins and kernels.
        workspace_gib: Memory that one layer may use, in GiB; 0 for no limit.
    """

    device: str
    hardware_compatibility: str
    version_compatible: bool
    architectures: tuple[str, ...]
    plugin_version: str
    workspace_gib: int


@dataclass(frozen=True)
class WeightBinding:
    """Which tensors of the data file engines take as inputs, bound at load; they hold all others as constants.

    One copy of an input serves every engine. Experts, the embedding, the head and quantized weights are always inputs;
    norms, biases and routers, which are small, are constants, so that a builder knows what they are.

    Attributes:
        bakes_projections: Whether the matrices of linear layers that are not quantized are constants, too.
        constants: Names of the constants.
    """

    bakes_projections: bool = False
    constants: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineInfo:
    """How the engines of a bundle were built.

    Attributes:
        library: Python module of the library that runs them.
        version: Its version; empty until the engines are built.
        compute_capabilities: Of the GPUs that they run on, such as "8.9"; empty until the engines are built.
        max_batch_size: Most sequences in one decode call.
        max_seq_len: Tokens of one KV-cache slot, prompt and answer.
        max_image_tokens: Most decoder tokens of one image, or of one frame pair of a video.
        prefill_chunk: Most prompt tokens in one prefill call.
        top_k: Tokens that a decode call returns for each sequence beside the logits; 0 if it returns logits alone.
        tensorrt: Present for TensorRT, absent for TensorRT for RTX.
        weights: Which weights they take as inputs.
    """

    library: str
    version: str
    compute_capabilities: tuple[str, ...]
    max_batch_size: int
    max_seq_len: int
    max_image_tokens: int
    prefill_chunk: int
    top_k: int
    tensorrt: TensorRTInfo | None = None
    weights: WeightBinding = WeightBinding()

    @property
    def version_compatible(self) -> bool:
        """Whether later versions of the library, of the same major version, run the engines."""
        return self.tensorrt is not None and self.tensorrt.version_compatible


@dataclass(frozen=True)
class CalibrationInfo:
    """What quantized weights were calibrated on, and what calibration returned.

    Attributes:
        sha256: Hash of the file of conversations.
        inputs_sha256: Hash of the decoder's inputs that they gave.
        conversations: Their number.
        tokens: The tokens of all.
        checksums: CRC-32 of the quantized weights and scales of each piece of a tensor (an expert, or a matrix), by the
            tensor's name, taken before they are written; null for an expert that no token could be routed to, which is
            quantized without calibration.
    """

    sha256: str
    inputs_sha256: str
    conversations: int
    tokens: int
    checksums: dict[str, tuple[int | None, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class VerificationInfo:
    """A record that ernie-verify found nothing past the limits, which whoever can write the bundle can forge.

    Attributes:
        version: The ernie-export that compared.
        date: The day, as YYYY-MM-DD.
        files_sha256: `Manifest.files_sha256` then.
        report_sha256: SHA-256 of the report as `ernie-verify --json` prints it.
    """

    version: str
    date: str
    files_sha256: str
    report_sha256: str


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 in hexadecimal digits."""

    bytes: int
    sha256: str


def read_model(section: JsonObject) -> ModelInfo:
    """Read the model's sizes and token ids."""
    values: dict[str, Any] = {}
    for member in fields(ModelInfo):
        minimum = 0 if "token_id" in member.name else 1
        read = section.integers if member.name == "eos_token_ids" else section.integer
        values[member.name] = read(member.name, minimum=minimum, maximum=LIMIT)
    section.refuse_unknown()
    return ModelInfo(**values)


def read_engines(section: JsonObject) -> EngineInfo:
    """Read how the engines were built."""
    sizes = ("max_batch_size", "max_seq_len", "max_image_tokens", "prefill_chunk")
    engines = EngineInfo(
        library=section.text("library"),
        version=section.text("version", empty=True),
        compute_capabilities=section.texts("compute_capabilities"),
        top_k=section.integer("top_k", minimum=0, maximum=LIMIT),
        tensorrt=read_optional(section, "tensorrt", _read_tensorrt),
        weights=read_optional(section, "weights", _read_weights) or WeightBinding(),
        **{key: section.integer(key, minimum=1, maximum=LIMIT) for key in sizes},
    )
    section.refuse_unknown()
    return engines


def _read_weights(section: JsonObject) -> WeightBinding:
    binding = WeightBinding(section.flag("bakes_projections"), section.texts("constants"))
    section.refuse_unknown()
    return binding


def _read_tensorrt(section: JsonObject) -> TensorRTInfo:
    tensorrt = TensorRTInfo(
        device=section.text("device", empty=True),
        hardware_compatibility=section.choice("hardware_compatibility", HARDWARE_COMPATIBILITY),
        version_compatible=section.flag("version_compatible"),
        architectures=section.texts("architectures"),
        plugin_version=section.text("plugin_version"),
        workspace_gib=section.integer("workspace_gib", minimum=0, maximum=LIMIT),
    )
    section.refuse_unknown()
    return tensorrt


def read_calibration(section: JsonObject) -> CalibrationInfo:
    """Read what the weights were calibrated on."""
    calibration = CalibrationInfo(
        sha256=section.text("sha256"),
        inputs_sha256=section.text("inputs_sha256"),
        conversations=section.integer("conversations", minimum=1, maximum=LIMIT),
        tokens=section.integer("tokens", minimum=1, maximum=LIMIT),
        checksums=_read_checksums(section.object("checksums")),
    )
    section.refuse_unknown()
    return calibration


def _read_checksums(section: JsonObject) -> dict[str, tuple[int | None, ...]]:
    checksums = {}
    for name in section.members:
        values = section.get(name)
        if not isinstance(values, list) or not all(value is None or type(value) is int for value in values):
            raise section.error(name, "a list of whole numbers and null")
        checksums[name] = tuple(values)
    return checksums


def read_verification(section: JsonObject) -> VerificationInfo:
    """Read the record of ernie-verify."""
    texts = {member.name: section.text(member.name) for member in fields(VerificationInfo)}
    section.refuse_unknown()
    return VerificationInfo(**texts)


def read_optional(section: JsonObject, key: str, read: Callable[[JsonObject], T]) -> T | None:
    """Read section `key` with `read`; return None if there is none."""
    return None if section.get(key) is None else read(section.object(key))


def read_files(section: JsonObject) -> dict[str, FileEntry]:
    """Read the file list. A name must be plain: a path could lead out of the bundle."""
    files = {}
    for name in section.members:
        if Path(name).name != name or not name.isprintable() or len(name.encode(errors="replace")) >= 256:
            raise InvalidFile(section.path, "plain file names", one_line(name), key="files")
        entry = section.object(name)
        size = entry.integer("bytes", minimum=0, maximum=LIMIT)
        files[name] = FileEntry(size, entry.text("sha256", empty=True))
        entry.refuse_unknown()
    return files
