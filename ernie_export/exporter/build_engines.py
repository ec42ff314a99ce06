"""The second half of an export for TensorRT: engines for a bundle that waits for them, on the machine with the GPU."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import GRAPHS, FileEntry, Manifest, sha256
from ernie_export.common.manifest import NAME as MANIFEST
from ernie_export.exporter.export import Progress
from ernie_export.exporter.replace import sync
from ernie_export.exporter.targets import tensorrt
from ernie_export.graphs.ops import plugins

WORK = ".engines"  # within the bundle: what is built, until all of it is
HASH_LIMIT = 256 * 2**20  # bytes: of a larger file (the weights, which no engine holds) the size alone is compared


def resume(bundle: Path, progress: Progress) -> Manifest:
    """Build the engines of `bundle`; returns its new manifest, whose writing is what makes the bundle one of engines.

    Killed at any moment, the bundle is as it was, but for a hidden folder of engines that the next call takes up.
    Raises UserError if the bundle does not wait for engines, its plugins are other than these, or what builds engines
    is missing; if a build fails, or the disk is full, after which nothing is left of what was built.
    """
    manifest = Manifest.read(bundle)
    check(bundle, manifest)
    facts = manifest.engines
    assert facts is not None  # `check` saw to it
    try:
        machine = tensorrt.find_machine(facts)
    except UserError as e:
        raise UserError(f"--resume {bundle}: {e}") from e
    with working(bundle) as work:
        manifest.check_files(bundle, HASH_LIMIT)
        merge = manifest.model.spatial_merge_size
        facts = tensorrt.build_engines(bundle, work, list(GRAPHS), facts, machine, merge, progress.share)
        progress.stage("Moving the engines into place", 0)
        built = {path.name: FileEntry(path.stat().st_size, sha256(path)) for path in sorted(work.iterdir())}
        used = tensorrt.prepared_files(facts)
        kept = {name: entry for name, entry in manifest.files.items() if name not in used}
        graphs = {name: f"{name}.engine" for name in GRAPHS}
        manifest = replace(manifest, graphs=graphs, files=dict(sorted((kept | built).items())), engines=facts)
        manifest.write(work)
        for path in work.iterdir():
            sync(path)
        for name in built:
            (work / name).replace(bundle / name)
        (work / MANIFEST).replace(bundle / MANIFEST)
        sync(bundle)
        for name in used:
            (bundle / name).unlink()
    return manifest


def check(bundle: Path, manifest: Manifest) -> None:
    """UserError unless the bundle waits for engines, with the plugins that are here."""
    facts = manifest.engines
    expected = f"--resume {bundle}: expected a bundle of --target {tensorrt.TARGET} that waits for its engines"
    if manifest.target != tensorrt.TARGET or facts is None or facts.tensorrt is None:
        raise UserError(f"{expected}, found target {manifest.target}")
    if not manifest.needs_engine_build:
        built = f"TensorRT {facts.version}, for {facts.tensorrt.device}"
        raise UserError(f"{expected}, found one that has them (of {built})")
    if facts.tensorrt.plugin_version != plugins.version():
        found = f"found {facts.tensorrt.plugin_version} (export again, or resume with the ernie-export that made it)"
        raise UserError(f"--resume {bundle}: expected plugins of version {plugins.version()}, {found}")


@contextmanager
def working(bundle: Path) -> Iterator[Path]:
    """The bundle's folder of work, for one process at a time; removed at the end, but for a kill or Ctrl-C."""
    work = bundle / WORK
    try:
        lock = os.open(bundle, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            work.mkdir(exist_ok=True)
            try:
                yield work
            except Exception:
                shutil.rmtree(work, ignore_errors=True)
                raise
            shutil.rmtree(work)
        except BlockingIOError as e:
            raise UserError(f"--resume {bundle}: expected it at rest, found another process that resumes it") from e
        finally:
            os.close(lock)
    except OSError as e:
        raise UserError(f"{bundle}: expected room and leave to write engines, found: {e.strerror or e}") from e
