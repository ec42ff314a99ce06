"""The bundle's contract: manifest.json, which the exporter writes and the runtime reads.

A bundle is a folder. `manifest.json` is written last, so a folder without one is not a bundle; it lists every other
file with its size and SHA-256. Whatever exporter and runtime must agree on is a field here, never a constant in both.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ernie_export.common.errors import InvalidFile
from ernie_export.common.json_fields import JsonObject, one_line, read_json
from ernie_export.common.manifest_sections import (
    CalibrationInfo,
    EngineInfo,
    FileEntry,
    ModelInfo,
    VerificationInfo,
    read_calibration,
    read_engines,
    read_files,
    read_model,
    read_optional,
    read_verification,
)
from ernie_export.common.version import __version__

SCHEMA = 3
NAME = "manifest.json"
GRAPHS = ("vision", "resampler", "decoder", "decode")


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
            model=read_model(document.object("model")),
            graphs=_read_graphs(document.object("graphs")),
            files=read_files(document.object("files")),
            engines=read_optional(document, "engines", read_engines),
            calibration=read_optional(document, "calibration", read_calibration),
            tiled=document.optional("tiled", document.texts) or (),
            version=document.text("version"),
            verification=read_optional(document, "verification", read_verification),
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


def _read_graphs(section: JsonObject) -> dict[str, str]:
    graphs = {name: section.text(name) for name in GRAPHS}
    section.refuse_unknown()
    return graphs


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
