"""The bundle's contract: manifest.json, the only thing that the exporter and the runtime share.

A bundle is a folder. `manifest.json` is written last, so a folder without one is not a bundle; it names every other
file with its size and SHA-256.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ernie_export.common.errors import UserError

SCHEMA = 1
NAME = "manifest.json"
GRAPHS = ("vision", "resampler", "decoder", "decode")
# The card that engines were built on, any of its compute capability, or any from Ampere (8.0) on.
HARDWARE = ("exact", "same-capability", "ampere-plus")
PREFILL_CHUNK = 512  # the most prompt tokens that a compiled engine takes in one call


@dataclass(frozen=True)
class ModelFacts:
    """The figures of the model that the runtime needs; sizes in elements, ids in the tokenizer's vocabulary."""

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
class EngineFacts:
    """What the engines of a bundle were built by and for.

    library, version: the package that must run them. compute_capabilities: "8.9" and the like. max_batch: rows of one
    decode call. max_tokens: capacity of a row of the KV cache. max_image_tokens: decoder tokens of one picture, or of
    one pair of a clip's frames.

    Of TensorRT's engines alone: device, the name of the card that they were built on. hardware: where else they run,
    one of HARDWARE. version_compatible: whether later versions of the same major run them, too. architectures: "sm90"
    and the like, what kernels are there for. plugins: version of the plugins' declarations and kernels. workspace: GiB
    that a layer may work in, 0 for all there is.

    A bundle that waits for its engines has no version and no compute capabilities yet.
    """

    library: str
    version: str
    compute_capabilities: tuple[str, ...]
    max_batch: int
    max_tokens: int
    max_image_tokens: int
    device: str = ""
    hardware: str = "exact"
    version_compatible: bool = False
    architectures: tuple[str, ...] = ()
    plugins: str = ""
    workspace: int = 0


@dataclass(frozen=True)
class CalibrationFacts:
    """What the weights were rounded for: SHA-256 of the file of conversations, SHA-256 of their token ids and pixels,
    and how many conversations and tokens they came to.
    """

    sha256: str
    inputs_sha256: str
    conversations: int
    tokens: int


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 in hexadecimal digits."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds. `graphs` maps vision, resampler, decoder and decode to files; `files` lists every file.

    `engines` is there where the graphs are compiled engines, `calibration` where the weights were rounded for given
    conversations.
    """

    target: str
    precision: str
    model: ModelFacts
    graphs: dict[str, str]
    files: dict[str, FileEntry]
    engines: EngineFacts | None = None
    calibration: CalibrationFacts | None = None

    @property
    def waits_for_engines(self) -> bool:
        """Whether all is there but the engines, which `ernie-export --resume` builds on the machine with the GPU."""
        return self.engines is not None and not self.engines.version

    @property
    def data_file(self) -> str:
        """Name of the one file of weights; UserError if none is listed."""
        for name in self.files:
            if name.endswith(".safetensors"):
                return name
        raise UserError(f"{NAME}: files: expected one of weights (.safetensors), found none")

    def write(self, folder: Path) -> None:
        """Write manifest.json into `folder`."""
        document = {"schema": SCHEMA} | asdict(self)
        for key in ("engines", "calibration"):
            if document[key] is None:
                del document[key]
        (folder / NAME).write_text(json.dumps(document, indent=1) + "\n")

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """Read manifest.json of the bundle `folder`; UserError if it is missing, newer than this code, or malformed."""
        path = folder / NAME
        if not folder.is_dir():
            raise UserError(f"{folder}: expected a bundle (a folder with {NAME}), found no folder")
        if not path.is_file():
            raise UserError(f"{folder}: expected a bundle, found no {NAME} (an unfinished export, or a checkpoint?)")
        try:
            document = json.loads(path.read_bytes())
        except (ValueError, UnicodeDecodeError, RecursionError) as e:
            raise UserError(f"{path}: expected JSON, found {' '.join(str(e).split())}") from e
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema != SCHEMA:
            newer = isinstance(schema, int) and schema > SCHEMA
            hint = " (made by a newer ernie-export: update this one)" if newer else ""
            raise UserError(f"{path}: expected schema {SCHEMA}, found {schema!r}{hint}")
        try:
            facts = dict(document["model"])
            facts["eos_token_ids"] = tuple(facts["eos_token_ids"])
            engines = document.get("engines")
            if engines is not None:
                several = ("compute_capabilities", "architectures")
                engines = EngineFacts(**engines | {key: tuple(engines[key]) for key in several if key in engines})
            calibration = document.get("calibration")
            manifest = Manifest(
                target=document["target"],
                precision=document["precision"],
                model=ModelFacts(**facts),
                graphs=dict(document["graphs"]),
                files={name: FileEntry(**entry) for name, entry in document["files"].items()},
                engines=engines,
                calibration=None if calibration is None else CalibrationFacts(**calibration),
            )
            manifest.check_types(path)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise UserError(f"{path}: not a manifest of schema {SCHEMA}: {type(e).__name__} {e}") from e
        return manifest

    def check_types(self, path: Path) -> None:
        """Refuse values of the wrong type and file names that leave the bundle."""
        for key in ("target", "precision"):
            if not isinstance(getattr(self, key), str):
                raise UserError(f"{path}: {key}: expected a name, found {getattr(self, key)!r}")
        for field in fields(self.model):
            value = getattr(self.model, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            least = 0 if "token_id" in field.name else 1
            if not all(type(number) is int and least <= number < 2**63 for number in numbers):
                raise UserError(f"{path}: model.{field.name}: expected whole numbers from {least}, found {value!r}")
        if self.engines is not None:
            for key in ("max_batch", "max_tokens", "max_image_tokens"):
                value = getattr(self.engines, key)
                if type(value) is not int or not 1 <= value < 2**63:
                    raise UserError(f"{path}: engines.{key}: expected a whole number from 1, found {value!r}")
            facts = self.engines
            names = (facts.library, facts.version, *facts.compute_capabilities, *facts.architectures, facts.device)
            if not all(isinstance(name, str) for name in (*names, facts.plugins)):
                raise UserError(f"{path}: engines: expected names of library, version and capabilities, found {names}")
            if facts.hardware not in HARDWARE:
                raise UserError(f"{path}: engines.hardware: expected {', '.join(HARDWARE)}, found {facts.hardware!r}")
            if type(facts.workspace) is not int or facts.workspace < 0 or type(facts.version_compatible) is not bool:
                found = f"{facts.workspace!r} and {facts.version_compatible!r}"
                raise UserError(
                    f"{path}: engines: expected workspace in GiB, version_compatible true or false, found {found}"
                )
        if (made := self.calibration) is not None:
            hashes, counts = (made.sha256, made.inputs_sha256), (made.conversations, made.tokens)
            if not all(isinstance(text, str) for text in hashes) or not all(type(n) is int and n > 0 for n in counts):
                raise UserError(f"{path}: calibration: expected hashes and whole numbers from 1, found {made}")
        for name, entry in self.files.items():
            plain = Path(name).name == name and name.isprintable() and len(name.encode()) < 256
            if not plain or type(entry.bytes) is not int or not isinstance(entry.sha256, str):
                raise UserError(f"{path}: files: expected plain file names with bytes and sha256, found {name!r}")
        for graph in GRAPHS:
            if graph not in self.graphs:
                raise UserError(f"{path}: graphs: expected {', '.join(GRAPHS)}, found no {graph}")
        for graph, name in self.graphs.items():
            if name not in self.files:
                raise UserError(f"{path}: graphs.{graph}: expected a file listed under files, found {name!r}")

    def check_files(self, folder: Path, hash_limit: int) -> None:
        """Compare the files in `folder` with the manifest: sizes always, contents up to `hash_limit` bytes a file.

        Raises UserError naming the first file that is missing or differs.
        """
        for name, entry in self.files.items():
            path = folder / name
            if not path.is_file():
                raise UserError(f"{path}: expected {entry.bytes} bytes (listed in {NAME}), found no file")
            size = path.stat().st_size
            if size != entry.bytes:
                raise UserError(f"{path}: expected {entry.bytes} bytes (listed in {NAME}), found {size}")
            if size <= hash_limit and (found := sha256(path)) != entry.sha256:
                raise UserError(f"{path}: expected sha256 {entry.sha256[:16]}… (listed in {NAME}), found {found[:16]}…")


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
