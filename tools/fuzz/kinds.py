"""The kinds of bad files: what is damaged, how, and the way through the code that each takes.

An attempt ends in a result or in a `UserError`; whatever else it raises is a finding. All files lie in one scratch
folder, of which every process has its own.
"""

import base64
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import formats
from mutate import damage_bytes, damage_json, damage_text
from samples import clip, picture

from ernie_export.common.errors import BuildFailed, Unavailable, UserError
from ernie_export.common.gpu import Gpu
from ernie_export.common.manifest import GRAPHS, Manifest, sha256
from ernie_export.common.manifest import NAME as MANIFEST
from ernie_export.exporter.build_engines import find_build
from ernie_export.exporter.export import Progress, export
from ernie_export.exporter.targets.engines import Attempt
from ernie_export.exporter.targets.target import BuildMachine
from ernie_export.exporter.targets.tensorrt_engines import TensorRTBuild
from ernie_export.graphs.ops import plugins
from ernie_export.runtime import load, messages_file
from ernie_export.runtime.preprocess import Preprocessor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from original_checkpoint import write_original  # noqa: E402
from zero_checkpoint import tiny_checkpoint  # noqa: E402

MEDIA = ROOT / "examples" / "media"
QUIET = Progress()
PICTURE = "picture"
CLIP = "clip"


@dataclass(frozen=True)
class Kind:
    """`seeds` are whole files; `damage(rng, seed, seeds)` makes one input, which `attempt` reads."""

    seeds: list[bytes]
    damage: formats.Damage
    attempt: Callable[[bytes], object]

    def input(self, name: str, number: int) -> bytes:
        """Input `number` of this kind, always the same."""
        rng = Random(f"{name} {number}")
        return self.damage(rng, rng.choice(self.seeds), self.seeds)


class Scratch:
    """A folder with a tiny checkpoint in both spellings, its bundle, and media; made once for one process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint, self.original, self.bundle = (folder / n for n in ("checkpoint", "original", "bundle"))
        self.output = folder / "output"
        tiny_checkpoint(self.checkpoint)
        write_original(self.original)
        export(self.checkpoint, self.bundle, "onnx", "fp32", QUIET)
        self.manifest = Manifest.read(self.bundle)
        self.preprocessor = Preprocessor.from_folder(self.bundle)
        (folder / PICTURE).write_bytes(picture("PNG"))
        (folder / CLIP).write_bytes(clip("mp4", "mpeg4"))
        self.messages = [
            {"role": "user", "content": [part("image", folder / PICTURE), part("video", folder / CLIP), text("What?")]}
        ]

    def kinds(self) -> Mapping[str, Callable[[], Kind]]:
        """Every kind by name; made when asked for."""
        checkpoint = self.checkpoint
        processors = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
        processors = (*processors, "video_preprocessor_config.json")
        original = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
        kinds: dict[str, Callable[[], Kind]] = {
            "safetensors": lambda: self.of_export(checkpoint, "model.safetensors", formats.damage_safetensors),
            "index": self.index,
            "config.json": lambda: self.of_export(checkpoint, "config.json", damage_json),
            "generation_config.json": lambda: self.of_export(checkpoint, "generation_config.json", damage_json),
            "original tokenizer.model": lambda: self.of_export(
                self.original, "tokenizer.model", formats.damage_protobuf
            ),
            "manifest.json": lambda: self.of_bundle(MANIFEST, damage_json, matching=False, may_answer=True),
            "chat_template.jinja": lambda: self.of_preprocessor("chat_template.jinja", damage_template),
            "font": lambda: self.of_preprocessor("Roboto-Regular.ttf", damage_bytes),
            "messages": self.of_messages,
        }
        kinds |= {f"{name} manifest.json": partial(self.of_engines, name) for name in ("trt", "trt-rtx")}
        kinds["trt interrupted build"] = self.of_interrupted_build
        kinds |= {f"original {n}": partial(self.of_export, self.original, n, damage_json) for n in original}
        kinds |= {name: partial(self.of_preprocessor, name, damage_json) for name in processors}
        for name in ("vision", "resampler", "decoder", "decode"):
            file = f"{name}.onnx"
            kinds[file] = partial(self.of_bundle, file, formats.damage_protobuf, matching=True, may_answer=True)
        kinds["weights.safetensors"] = partial(
            self.of_bundle, "weights.safetensors", formats.damage_safetensors, matching=True, may_answer=True
        )
        for name in ("decode.onnx", "weights.safetensors", "tokenizer.json"):
            kinds[f"unlisted {name}"] = partial(self.of_bundle, name, damage_bytes, matching=False, may_answer=False)
        for form, damage in PICTURES.items():
            kinds[form] = partial(self.of_media, "image", [picture(form, size) for size in (0, 1)], damage)
        for name, (form, codecs, damage) in CLIPS.items():
            kinds[name] = partial(self.of_media, "video", [clip(form, codec) for codec in codecs], damage)
        return kinds

    def of_export(self, folder: Path, name: str, damage: formats.Damage) -> Kind:
        """One file of a checkpoint, which is then exported; an old bundle stays where that is refused."""
        whole = (folder / name).read_bytes()

        def attempt(data: bytes) -> None:
            (folder / name).write_bytes(data)
            try:
                export(folder, self.output, "onnx", "fp32", QUIET)
            except UserError:
                left = [path.name for path in self.folder.iterdir() if path.name.startswith((".output", "output"))]
                assert not left, f"a refused export left {left}"
                raise
            finally:
                (folder / name).write_bytes(whole)
            shutil.rmtree(self.output)

        return Kind([whole], damage, attempt)

    def index(self) -> Kind:
        """The index of a checkpoint in shards."""
        folder = self.folder / "shards"
        shutil.copytree(self.checkpoint, folder)
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        header = (folder / "model-1.safetensors").read_bytes()
        names = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return self.of_export(folder, "model.safetensors.index.json", damage_json)

    def of_bundle(self, name: str, damage: formats.Damage, matching: bool, may_answer: bool) -> Kind:
        """One file of a bundle, which is then loaded and asked; `matching`: the manifest is true to the damaged file.

        Without `may_answer` a bundle that differs from the whole one has to be refused.
        """
        whole = (self.bundle / name).read_bytes()
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        shutil.copytree(self.bundle, folder, dirs_exist_ok=True)
        document = json.loads((self.bundle / MANIFEST).read_bytes())

        def attempt(data: bytes) -> None:
            (folder / name).write_bytes(data)
            if matching:
                document["files"][name] = {"bytes": len(data), "sha256": sha256(folder / name)}
                (folder / MANIFEST).write_text(json.dumps(document))
            with load(folder, threads=1) as model:
                assert may_answer or data == whole, "a file that is not the manifest's was loaded"
                model.generate(self.messages, max_new_tokens=2)

        return Kind([whole], damage, attempt)

    def of_engines(self, target: str) -> Kind:
        """The manifest of a bundle of engines, which is then resumed and loaded as far as goes without a GPU.

        What would be removed once the engines are built has to lie in the bundle.
        """
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        shutil.copytree(self.bundle, folder, dirs_exist_ok=True)
        document = engines_manifest(folder, target)

        def attempt(data: bytes) -> None:
            (folder / MANIFEST).write_bytes(data)
            manifest = Manifest.read(folder)
            if manifest.target == "trt" and manifest.needs_engine_build:
                build, engines = find_build(folder, manifest)
                names = build.input_files(engines)
                assert all((folder / name).resolve().parent == folder.resolve() for name in names), names
                build.check_plugins(folder, engines)
                manifest.check_files(folder, 2**20)
                return
            with suppress(Unavailable):  # there is no GPU
                load(folder, device="cuda").close()

        return Kind([json.dumps(document).encode()], damage_json, attempt)

    def of_interrupted_build(self) -> Kind:
        """The notes of an interrupted build of an engine, which is then taken up, or begun again."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        build = TensorRTBuild("tensorrt", lambda: None, no_engine)
        machine = BuildMachine("10.15.1", Gpu("H100", (9, 0)))
        attempts = [Attempt("", {"engine": str(folder / "vision.engine")})]
        key = [[asdict(attempts[0])], machine.version, machine.gpu.name]
        notes = {"key": key, "report": {"layers": 3, "inputs": [], "attention": {"layers": 1}}}
        (folder / "vision.engine").write_bytes(b"engine")

        def attempt(data: bytes) -> None:
            (folder / "vision.json").write_bytes(data)
            assert isinstance(build.build_or_reuse("vision", attempts, machine, QUIET), dict)

        return Kind([json.dumps(notes).encode()], damage_json, attempt)

    def of_preprocessor(self, name: str, damage: formats.Damage) -> Kind:
        """One file of the processors, which then preprocess a picture and a clip."""
        whole = (self.bundle / name).read_bytes()
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        for path in self.bundle.iterdir():
            if path.suffix in (".json", ".jinja", ".ttf"):
                os.link(path, folder / path.name)

        def attempt(data: bytes) -> None:
            (folder / name).unlink()
            (folder / name).write_bytes(data)
            Preprocessor.from_folder(folder)(self.messages)

        return Kind([whole], damage, attempt)

    def of_media(self, kind: str, seeds: list[bytes], damage: formats.Damage) -> Kind:
        """A picture or a clip in a message."""
        path = self.folder / f"bad {kind}"
        messages = [{"role": "user", "content": [part(kind, path), text("What is it?")]}]

        def attempt(data: bytes) -> None:
            path.write_bytes(data)
            self.preprocessor(messages)

        return Kind(seeds, damage, attempt)

    def of_messages(self) -> Kind:
        """A file of messages, as ernie-run takes it."""
        path = self.folder / "messages.json"
        encoded = base64.b64encode(picture("PNG")).decode()
        several: list[Any] = [
            [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Is a <|IMAGE_START|> a token?"}],
            self.messages,
            [self.messages, [{"role": "user", "content": [text("é\U0001f600"), text("")]}]],
            [
                {"role": "user", "content": [{"type": "image", "base64": encoded}, text("What is it?")]},
                {"role": "assistant", "content": "A shape.", "reasoning_content": "It has sides."},
                {"role": "user", "content": [text("How many?")], "name": "x"},
            ],
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
                        {"type": "video", "url": (self.folder / CLIP).as_uri(), "fps": 2},
                        text("x"),
                    ],
                }
            ],
        ]

        def attempt(data: bytes) -> None:
            path.write_bytes(data)
            document = messages_file.read(path)
            for conversation in document if isinstance(document[0], list) else [document]:
                self.preprocessor(conversation)

        return Kind([json.dumps(messages).encode() for messages in several], damage_json, attempt)


def engines_manifest(folder: Path, target: str) -> dict[str, Any]:
    """Write what a bundle of engines has beside the graphs into a copy of a bundle, and return its manifest."""
    document: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    engines: dict[str, Any] = {
        "library": "tensorrt_rtx", "version": "1.5", "compute_capabilities": ["9.0"], "max_batch_size": 4,
        "max_seq_len": 512, "max_image_tokens": 64, "prefill_chunk": 128, "top_k": 0,
    }  # fmt: skip
    names = [f"{name}.engine" for name in GRAPHS]
    if target == "trt":
        info = {"device": "", "hardware_compatibility": "exact", "version_compatible": False, "workspace_gib": 0}
        info |= {"architectures": ["sm90", "sm80"], "plugin_version": plugins.version()}
        engines |= {"library": "tensorrt", "version": "", "compute_capabilities": [], "tensorrt": info}
        names = ["kernels-sm90.json", "kernels-sm80.json"]
    for name in names:
        (folder / name).write_bytes(b"{}")
        document["files"][name] = {"bytes": 2, "sha256": sha256(folder / name)}
    if target != "trt":
        document["graphs"] = {name: f"{name}.engine" for name in GRAPHS}
    return document | {"target": target, "precision": "bf16", "devices": ["cuda"], "engines": engines}


def no_engine(name: str, request: Any, on_progress: Any) -> Any:
    """Refuse to build an engine."""
    raise BuildFailed("there is no TensorRT here")


def part(kind: str, path: Path) -> dict[str, Any]:
    """A part of a message with a local file."""
    return {"type": kind, "path": str(path)}


def text(words: str) -> dict[str, Any]:
    """A part of a message with text."""
    return {"type": "text", "text": words}


def damage_template(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    """A chat template with one to three edits of its text, or with a piece that loops, recurs or raises."""
    if rng.random() < 0.3:
        return damage_bytes(rng, data, others)
    source = data.decode()
    for _ in range(rng.randint(1, 3)):
        source = damage_text(rng, source)
    pieces = ("{% for x in range(99999999) %}{% endfor %}", "{{ 'x' * 10**9 }}", "{{ 1 / 0 }}", "{{ messages.x.y }}",
              "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ ''.__class__.__mro__ }}", "{{ 9 ** 9 ** 9 }}",
              "{{ raise_exception('a\nb') }}", "{% include 'x' %}", "{{ '%999999999d' % 1 }}")  # fmt: skip
    if rng.random() < 0.2:
        source = rng.choice((rng.choice(pieces) + source, source + rng.choice(pieces)))
    return source.encode(errors="surrogatepass")


PICTURES: dict[str, formats.Damage] = {
    "PNG": formats.damage_png,
    "JPEG": formats.damage_jpeg,
    "GIF": formats.damage_gif,
    "WEBP": formats.damage_riff,
    "BMP": damage_bytes,
    "TIFF": damage_bytes,
}
CLIPS: dict[str, tuple[str, tuple[str, ...], formats.Damage]] = {
    "MP4": ("mp4", ("libx264", "mpeg4"), formats.damage_mp4),
    "MKV": ("matroska", ("libx264", "ffv1"), formats.damage_ebml),
    "WebM": ("webm", ("libvpx", "libvpx-vp9"), formats.damage_ebml),
    "GIF clip": ("gif", ("gif",), formats.damage_gif),
    "AVI": ("avi", ("mpeg4", "mjpeg"), formats.damage_riff),
}
