"""The second half of an export for TensorRT: engines for a bundle that waits for them, on the machine with the GPU."""

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ernie_export.common.errors import CannotWrite, InvalidFile, InvalidValue, Unavailable
from ernie_export.common.manifest import GRAPHS, Manifest, sha256
from ernie_export.common.manifest import NAME as MANIFEST
from ernie_export.common.manifest_sections import EngineInfo, FileEntry
from ernie_export.exporter.progress import SILENT, Progress
from ernie_export.exporter.replace import is_own_folder, sync
from ernie_export.exporter.targets import TARGETS
from ernie_export.exporter.targets.target import DeferredBuild

WORK = ".engines"  # folder in the bundle: engines that are built, until all of them are
HASH_LIMIT = 256 * 2**20  # bytes: of a larger file (the weights, few of which engines hold) only the size is compared


def resume(bundle: Path, progress: Progress = SILENT) -> Manifest:
    """Build the engines of `bundle`; return its new manifest, whose writing is what makes the bundle one of engines.

    Killed at any moment, the bundle is as it was, but for a hidden folder of engines that the next call reuses.
    Raises UserError if the bundle does not wait for engines, its plugins are of another version, or what builds engines
    is missing; if a build fails, or the disk is full, after which nothing is left of what was built.
    """
    manifest = Manifest.read(bundle)
    build, engines = find_build(bundle, manifest)
    build.check_plugins(bundle, engines)
    try:
        machine = build.find_machine(engines)
    except Unavailable as e:
        raise Unavailable(f"--resume {bundle}: {e}") from e
    merge = manifest.model.spatial_merge_size
    with work_folder(bundle) as work:
        manifest.check_files(bundle, HASH_LIMIT)
        built = build.build(bundle, work, engines, machine, merge=merge, progress=progress)
        progress.begin("Moving the engines into place")
        used = build.input_files(engines)
        # Nothing else that stands there: a bundle may come from somebody else, with such a folder in it.
        made = [work / name for name in build.output_files() if (work / name).is_file()]
        manifest = replace(
            manifest,
            graphs={name: f"{name}.engine" for name in GRAPHS},
            files=updated_files(manifest, made, used),
            engines=built,
        )
        manifest.write(work)
        move_into_place([*made, work / MANIFEST], bundle)
        for name in used:
            (bundle / name).unlink(missing_ok=True)
    return manifest


def find_build(bundle: Path, manifest: Manifest) -> tuple[DeferredBuild, EngineInfo]:
    """Return what builds the engines of `bundle`, and how.

    Raises InvalidValue if it does not wait for engines, InvalidFile if it has not what they are built from.
    """
    builds = {name: target.deferred_build for name, target in TARGETS.items() if target.deferred_build is not None}
    build = builds.get(manifest.target)
    engines = manifest.engines
    field = f"--resume {bundle}"
    expected = f"a bundle of --target {' or '.join(builds)} that waits for its engines"
    if build is None or engines is None or engines.tensorrt is None:
        raise InvalidValue(field, expected, f"target {manifest.target}")
    if not manifest.needs_engine_build:
        made_by = f"TensorRT {engines.version}, for {engines.tensorrt.device}"
        raise InvalidValue(field, expected, f"one that has them (of {made_by})")
    build.check_architectures(bundle, engines)
    for name in build.input_files(engines):
        if name not in manifest.files:  # whose names are plain; these files are removed at the end
            raise InvalidFile(bundle / MANIFEST, f"{name}, which engines are built from", "no such file", key="files")
    return build, engines


def updated_files(manifest: Manifest, made: list[Path], used: list[str]) -> dict[str, FileEntry]:
    """Return the bundle's files with those in `made`, and without those in `used`."""
    kept = {name: entry for name, entry in manifest.files.items() if name not in used}
    built = {path.name: FileEntry(path.stat().st_size, sha256(path)) for path in made}
    return dict(sorted((kept | built).items()))


def move_into_place(paths: list[Path], bundle: Path) -> None:
    """Move files to `bundle`, in this order."""
    for path in paths:
        sync(path)
    for path in paths:
        path.replace(bundle / path.name)
    sync(bundle)


def make_or_take_up(work: Path) -> None:
    """Make the folder, or take up the one that an interrupted build left.

    A bundle may come from somebody else. What stands in the folder becomes part of the bundle, so it must be a folder
    of this user with plain files in it. Raises InvalidFile for anything else.
    """
    try:
        work.mkdir()
    except FileExistsError:
        if not is_own_folder(work):
            raise InvalidFile(work, "nothing, or the folder of an interrupted build", "something else") from None
        for path in work.iterdir():
            if not stat.S_ISREG(path.lstat().st_mode):
                raise InvalidFile(path, "a plain file of an interrupted build", "something else") from None


@contextmanager
def work_folder(bundle: Path) -> Iterator[Path]:
    """Yield the folder that engines are built in, for one process at a time.

    It is removed at the end, but for a kill or Ctrl-C. Raises Unavailable if another process has it, CannotWrite if a
    file cannot be written.
    """
    work = bundle / WORK
    try:
        lock = os.open(bundle, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            make_or_take_up(work)
            try:
                yield work
            except Exception:
                shutil.rmtree(work, ignore_errors=True)
                raise
            shutil.rmtree(work)
        except BlockingIOError as e:
            reason = "another process is already building its engines"
            raise Unavailable(f"--resume {bundle}: {reason}") from e
        finally:
            os.close(lock)
    except OSError as e:
        raise CannotWrite(bundle, "engines", e.strerror or str(e)) from e
