"""The real tritonserver of the wheel nvidia-pytriton, which `make test` puts into a folder of its own with its client.

The wheel brings the server, its Python backend and a stub for each version of Python; tritonserver wants the stub
beside the backend. The stub embeds Python and becomes the virtual environment whose `bin` is first on the PATH; it
heeds no PYTHONPATH.
"""

import importlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest

import ernie_export
from ernie_export.exporter.export import export
from tests.paths import MEDIA, MINI
from tests.progress import QUIET

FOLDER = Path(sys.prefix) / "tritonserver"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def import_client() -> Any:
    """Import tritonclient.grpc and what it needs of FOLDER alone: its NumPy is for the server."""
    for name in ("rapidjson", "tritonclient"):
        if name not in sys.modules:
            spec = PathFinder.find_spec(name, [str(FOLDER)])
            assert spec and spec.loader, f"{FOLDER} holds no {name}: `make test` fills it"
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
    return importlib.import_module("tritonclient.grpc")


class Client:
    """tritonclient over gRPC: requests by name, and their responses in the order in which they come."""

    def __init__(self, port: int) -> None:
        self.grpc = import_client()
        self.client = self.grpc.InferenceServerClient(f"127.0.0.1:{port}")

    def begin(self) -> None:
        """Open the stream of this client, which has one at a time; results and errors go into `came`."""
        self.came: Queue[tuple[Any, Any]] = Queue()
        self.client.start_stream(lambda result, error, came=self.came: came.put((result, error)))

    def next(self) -> tuple[str, str]:
        """The name of the request that the next response is to, or "" and the error that it is."""
        result, error = self.came.get(timeout=60)
        return ("", error.message()) if error is not None else (result.get_response().id, "")

    def ask(self, name: str, messages: Any, stream: bool = True, timeout: int | None = None, **options: Any) -> None:
        """Send a request; messages other than text are written as JSON. `timeout`: microseconds."""
        text = messages if isinstance(messages, bytes) else json.dumps(messages).encode()
        values = [("messages", "BYTES", np.array([text], np.object_)), ("stream", "BOOL", np.array([stream]))]
        if options:
            values.append(("sampling_parameters", "BYTES", np.array([json.dumps(options).encode()], np.object_)))
        inputs = []
        for key, kind, array in values:
            inputs.append(self.grpc.InferInput(key, [1], kind))
            inputs[-1].set_data_from_numpy(array)
        self.client.async_stream_infer("ernie", inputs, request_id=name, timeout=timeout)

    def answers(self, count: int) -> dict[str, list[dict[str, Any]]]:
        """The responses to `count` requests by name, the first to end first."""
        pending: dict[str, list[dict[str, Any]]] = {}
        ended: dict[str, list[dict[str, Any]]] = {}
        while len(ended) < count:
            result, error = self.came.get(timeout=60)
            if error is not None:
                raise error
            name = result.get_response().id
            response: dict[str, Any] = {
                key: result.as_numpy(key)[0].decode() for key in ("text", "reasoning", "finish_reason")
            }
            response["tokens"] = result.as_numpy("tokens").tolist()
            response["prompt_tokens"] = int(result.as_numpy("prompt_tokens")[0])
            pending.setdefault(name, []).append(response)
            if response["finish_reason"]:
                ended[name] = pending.pop(name)
        return ended

    def cancel(self) -> None:
        """Close the stream and give up what is still being answered."""
        self.client.stop_stream(cancel_requests=True)


def make_environment(folder: Path, numpy_1: bool) -> Path:
    """A virtual environment of what these tests import, but with NumPy 1.26 of FOLDER if wanted."""
    venv.create(folder)
    project = Path(ernie_export.__file__).parents[1]
    lines = [str(path) for path in ([FOLDER, project] if numpy_1 else [project])]
    lines.append(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})")
    site = folder / "lib" / f"python{PYTHON}" / "site-packages"
    (site / "tests.pth").write_text("".join(f"{line}\n" for line in lines))
    return folder


def make_backends(folder: Path) -> Path:
    """The folder of backends that tritonserver takes, of links to the wheel's files."""
    server = FOLDER / "pytriton" / "tritonserver"
    stub = server / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    (folder / "python").mkdir(parents=True)
    for path in (*(server / "backends" / "python").iterdir(), stub):
        (folder / "python" / path.name).symlink_to(path)
    return folder


@contextmanager
def run_server(
    repository: Path, work: Path, http: int, grpc: int, numpy_1: bool = True
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run tritonserver on loopback until the block ends, with its log at `work`/log."""
    environment = os.environ | {
        "PATH": f"{make_environment(work / 'environment', numpy_1)}/bin:{os.environ['PATH']}",
        # The second: the stub links to a libpython by name, and this is the one that the environment belongs to.
        "LD_LIBRARY_PATH": f"{FOLDER / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}",
    }
    command = [
        str(FOLDER / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={make_backends(work / 'backends')}",
        "--http-address=127.0.0.1",
        f"--http-port={http}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={grpc}",
        "--allow-metrics=false",
        "--exit-timeout-secs=30",
    ]
    with (work / "log").open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        yield server
    finally:
        server.terminate()
        try:
            server.wait(45)
        except subprocess.TimeoutExpired:
            server.kill()
            pytest.fail(f"tritonserver did not end when asked to: {(work / 'log').read_text()[-2000:]}")


@pytest.fixture(scope="session")
def serving() -> Callable[..., AbstractContextManager["subprocess.Popen[bytes]"]]:
    """`run_server`."""
    return run_server


@pytest.fixture(scope="session")
def free_ports() -> Callable[[], tuple[int, int]]:
    """Two ports of loopback that nothing listens on."""

    def find() -> tuple[int, int]:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            return one.getsockname()[1], other.getsockname()[1]

    return find


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository of mini-ernie for few requests at a time, which may name files of `media`, its neighbour."""
    folder = tmp_path_factory.mktemp("triton") / "repository"
    (folder.parent / "media").mkdir()
    for path in (MEDIA).iterdir():
        (folder.parent / "media" / path.name).write_bytes(path.read_bytes())
    export(MINI, folder, "onnx", "fp32", QUIET, layout="triton")
    config = folder / "ernie" / "config.pbtxt"
    text = config.read_text()
    for name, before, after in (
        ("rows", "16", "4"),
        ("waiting", "64", "12"),
        ("media_folder", "", str(folder.parent / "media")),
    ):
        line = f'{{ key: "{name}" value {{ string_value: "%s" }} }}'
        assert line % before in text
        text = text.replace(line % before, line % after)
    config.write_text(text)
    return folder


@pytest.fixture(scope="session")
def server(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """tritonserver with the repository loaded: its HTTP and gRPC ports."""
    http, grpc = free_ports()
    work = tmp_path_factory.mktemp("tritonserver")
    with run_server(repository, work, http, grpc) as process:
        wait_until_ready(Client(grpc), process, work / "log")
        yield http, grpc
        assert process.poll() is None, (work / "log").read_text()
    assert "successfully unloaded 'ernie'" in (work / "log").read_text()


def wait_until_ready(client: Client, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the model is loaded; fail with the log where it is not."""
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            if client.client.is_model_ready("ernie"):
                return
        except Exception:  # it does not listen yet
            time.sleep(0.1)
    pytest.fail(log.read_text())


@pytest.fixture
def client(server: tuple[int, int]) -> Iterator[Client]:
    """A client with an open stream. It is closed whatever happens: tritonserver would not end before it is."""
    opened = Client(server[1])
    opened.begin()
    yield opened
    opened.cancel()
