"""Options and markers of the whole suite, and the bundles that many tests read.

Before any test is imported, Triton is set to run kernels in its interpreter in this process. It decides for its own
library, too, when it is first imported, and PyTorch may import it before a kernel's test does. Tests that compile
kernels do so in processes of their own, without this variable.

Commands that tests start buffer and encode their output as they do for a user, whatever this run has set.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ernie_export.exporter.export import export
from tests.markers import MARKERS, is_alone, marker_of, order_of
from tests.paths import MINI
from tests.progress import QUIET

os.environ["TRITON_INTERPRET"] = "1"
for variable in ("PYTHONUNBUFFERED", "PYTHONIOENCODING"):
    os.environ.pop(variable, None)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that say how much of the suite runs."""
    parser.addoption("--fast", action="store_true", help="Run only tests without a marker of tests/markers.py.")
    parser.addoption("--kills", type=int, default=10, help="Moments at which an export of each precision is killed.")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip marked files in a fast run: importing them may need what is not installed."""
    return True if config.getoption("--fast") and marker_of(collection_path) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by their folder, begin with the longest files, and drop single slow tests of a fast run."""
    items.sort(key=lambda item: order_of(item.path))
    for item in items:
        if marker := marker_of(item.path):
            item.add_marker(marker)
        if is_alone(item.path):
            item.add_marker("alone")
    if config.getoption("--fast"):
        dropped = [item for item in items if any(item.get_closest_marker(name) for name in MARKERS)]
        items[:] = [item for item in items if item not in dropped]
        config.hook.pytest_deselected(items=dropped)


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """Moments at which an export of each precision is killed."""
    return int(request.config.getoption("--kills"))


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of every file of a folder."""
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())}


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Callable[..., Path]]:
    """bundle_of(target, precision): a bundle of the mini checkpoint, exported once a session, read only.

    Worker processes of one session share it: the first that asks exports while the others wait for a file lock.
    """
    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent
    states: dict[Path, dict[str, tuple[int, int]]] = {}

    def find(target: str = "onnx", precision: str = "fp32") -> Path:
        folder = shared / f"mini-{target}-{precision}"
        with (shared / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "manifest.json").exists():
                export(MINI, folder, target, precision, QUIET)
        states.setdefault(folder, state(folder))
        return folder

    yield find
    for folder, before in states.items():
        assert state(folder) == before, f"a test changed {folder.name}, which all tests share"


@pytest.fixture(scope="session")
def mini_bundle(bundle_of: Callable[..., Path]) -> Path:
    """The mini checkpoint exported for ONNX Runtime in float32; read only."""
    return bundle_of()
