"""The bundle's contract: manifest.json, which the exporter writes and the runtime reads.

A bundle is a folder. `manifest.json` is written last, so a folder without one is not a bundle; it lists every other
file with its size and SHA-256. Whatever exporter and runtime must agree on is a field here, never a constant in both.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ernie_export.common.errors import InvalidFile
from ernie_export.common.json_fields import JsonObject, one_line, read_json
from ernie_export.common.version import __version__

SCHEMA = 3
NAME = "manifest.json"
GRAPHS = ("vision", "resampler", "decoder", "decode")
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


@dataclass(frozen=True)
class Manifest:
    """The content of a bundle.

    Attributes:
        target: Name of the export target, such as "onnx".
        precision: Name of the precision, such as "int4".
        devices: Devices that run the bundle: "cpu", "cuda" or both.
        cpu_decode_graph: The graph that ONNX Runtime's CPU engine decodes with: "decode", or "decoder" where its
            sessions pack the weights in memory of their own, so that a second session would hold them twice.
        model: Sizes and token ids.
        graphs: File of each graph in GRAPHS.
        files: Every file of the bundle but the manifest.
        engines: Present where the graphs are, or will be, compiled engines.
        calibration: Present where the quantized weights were calibrated.
        tiled: Names of the tensors that lie as CUDA's kernels for experts read them (see `expert_layout`).
        version: The ernie-export that wrote the bundle.
        verification: Present where `ernie-verify --record` found the bundle right.
    """

    target: str
    precision: str
    devices: tuple[str, ...]
    cpu_decode_graph: str
    model: ModelInfo
    graphs: dict[str, str]
    files: dict[str, FileEntry]
    engines: EngineInfo | None = None
    calibration: CalibrationInfo | None = None
    tiled: tuple[str, ...] = ()
    version: str = __version__
    verification: VerificationInfo | None = None

    @property
    def files_sha256(self) -> str:
        """Return the SHA-256 over names, sizes and hashes of all files."""
        return hashlib.sha256(json.dumps(sorted(asdict(self)["files"].items())).encode()).hexdigest()

    @property
    def needs_engine_build(self) -> bool:
        """Whether everything is there but the engines, which `ernie-export --resume` builds on the GPU machine."""
        return self.engines is not None and not self.engines.version

    @property
    def data_file(self) -> str:
        """Name of the one file of weights. Raises InvalidFile if none is listed."""
        for name in self.files:
            if name.endswith(".safetensors"):
                return name
        raise InvalidFile(NAME, "a file of weights (.safetensors)", "none", key="files")

    def text(self) -> str:
        """Return the content of manifest.json."""
        document = {"schema": SCHEMA, **asdict(self)}
        for key in ("engines", "calibration", "tiled", "verification"):
            if not document[key]:
                del document[key]
        return json.dumps(document, indent=1) + "\n"

    def write(self, folder: Path) -> None:
        """Write manifest.json into `folder`."""
        (folder / NAME).write_text(self.text())

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """Read manifest.json of the bundle `folder`.

        Raises InvalidFile if it is missing, malformed or of another schema.
        """
        path = folder / NAME
        if not folder.is_dir():
            raise InvalidFile(folder, f"a bundle (a folder with {NAME})", "no folder")
        if not path.is_file():
            raise InvalidFile(folder, "a bundle", f"no {NAME}", hint="an unfinished export, or a checkpoint?")
        document = JsonObject(path, "", read_json(path))
        schema = document.get("schema")
        if schema != SCHEMA:
            newer = isinstance(schema, int) and schema > SCHEMA
            hint = "written by a newer ernie-export: update this one" if newer else "export the checkpoint again"
            raise InvalidFile(path, f"schema {SCHEMA}", f"schema {one_line(schema)}", hint=hint)
        manifest = Manifest(
            target=document.text("target"),
            precision=document.text("precision"),
            devices=document.texts("devices"),
            cpu_decode_graph=document.choice("cpu_decode_graph", GRAPHS),
            model=_read_model(document.object("model")),
            graphs=_read_graphs(document.object("graphs")),
            files=_read_files(document.object("files")),
            engines=_read_optional(document, "engines", _read_engines),
            calibration=_read_optional(document, "calibration", _read_calibration),
            tiled=document.optional("tiled", document.texts) or (),
            version=document.text("version"),
            verification=_read_optional(document, "verification", _read_verification),
        )
        document.refuse_unknown()
        for graph, name in manifest.graphs.items():
            if name not in manifest.files:
                raise InvalidFile(path, "a file listed under files", one_line(name), key=f"graphs.{graph}")
        return manifest

    def require_verification(self, folder: Path) -> None:
        """Raise InvalidFile unless ernie-verify has recorded that the listed files are right."""
        record = self.verification
        if record is None or record.files_sha256 != self.files_sha256:
            found = "none" if record is None else f"one of other files, of {one_line(record.date)}"
            raise InvalidFile(folder / NAME, "a record of ernie-verify --record", found, key="verification")

    def refuse_unlisted(self, folder: Path) -> None:
        """Raise InvalidFile for a file in `folder` that the manifest does not list.

        A graph names the file of its weights: one that is not listed would be loaded, and its hash never compared.
        """
        for path in sorted(folder.iterdir()):
            if not path.is_dir() and path.name not in self.files and path.name != NAME:
                raise InvalidFile(path, f"only files that {NAME} lists", "another one")

    def check_files(self, folder: Path, hash_limit: int) -> None:
        """Compare the files in `folder` with the manifest: sizes always, contents up to `hash_limit` bytes a file.

        Raises InvalidFile for the first file that is missing or differs.
        """
        for name, entry in self.files.items():
            path = folder / name
            if not path.is_file():
                raise InvalidFile(path, f"{entry.bytes} bytes (listed in {NAME})", "no file")
            size = path.stat().st_size
            if size != entry.bytes:
                raise InvalidFile(path, f"{entry.bytes} bytes (listed in {NAME})", size)
            if size <= hash_limit and (found := sha256(path)) != entry.sha256:
                raise InvalidFile(path, f"sha256 {entry.sha256[:16]}… (listed in {NAME})", f"{found[:16]}…")


def _read_model(section: JsonObject) -> ModelInfo:
    values: dict[str, Any] = {}
    for member in fields(ModelInfo):
        minimum = 0 if "token_id" in member.name else 1
        read = section.integers if member.name == "eos_token_ids" else section.integer
        values[member.name] = read(member.name, minimum=minimum, maximum=LIMIT)
    section.refuse_unknown()
    return ModelInfo(**values)


def _read_engines(section: JsonObject) -> EngineInfo:
    sizes = ("max_batch_size", "max_seq_len", "max_image_tokens", "prefill_chunk")
    engines = EngineInfo(
        library=section.text("library"),
        version=section.text("version", empty=True),
        compute_capabilities=section.texts("compute_capabilities"),
        top_k=section.integer("top_k", minimum=0, maximum=LIMIT),
        tensorrt=_read_optional(section, "tensorrt", _read_tensorrt),
        **{key: section.integer(key, minimum=1, maximum=LIMIT) for key in sizes},
    )
    section.refuse_unknown()
    return engines


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


def _read_calibration(section: JsonObject) -> CalibrationInfo:
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


def _read_verification(section: JsonObject) -> VerificationInfo:
    texts = {member.name: section.text(member.name) for member in fields(VerificationInfo)}
    section.refuse_unknown()
    return VerificationInfo(**texts)


def _read_optional(section: JsonObject, key: str, read: Callable[[JsonObject], T]) -> T | None:
    return None if section.get(key) is None else read(section.object(key))


def _read_graphs(section: JsonObject) -> dict[str, str]:
    graphs = {name: section.text(name) for name in GRAPHS}
    section.refuse_unknown()
    return graphs


def _read_files(section: JsonObject) -> dict[str, FileEntry]:
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


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
