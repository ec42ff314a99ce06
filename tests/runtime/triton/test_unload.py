"""Unloading a model whatever its requests do: each gets a last response, and what they use is freed after them.

tritonserver itself waits for what runs before it unloads, so the backend runs in this process here, on fakes of the
server's own types.
"""

import base64
import json
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ernie_export.runtime.serving.triton_backend import ENDED, TritonPythonModel
from tests.hostile_media import slow_jpeg

SLOW = f"data:image/jpeg;base64,{base64.b64encode(slow_jpeg()).decode()}"
FINAL = 1
REQUESTS = {
    "text that goes on": ("What is red?", {"min_new_tokens": 3000, "max_new_tokens": 3000}),
    "images that go on": ([{"type": "image", "url": SLOW}] * 4, {}),
}


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self.array = array

    @classmethod
    def from_dlpack(cls, name: str, array: np.ndarray) -> "Tensor":
        return cls(name, array)

    def as_numpy(self) -> np.ndarray:
        return self.array


class Sender:
    """Keeps the responses to one request."""

    def __init__(self) -> None:
        self.responses: list[Any] = []
        self.ended = threading.Event()

    def send(self, response: Any, flags: int = 0) -> None:
        assert not self.ended.is_set(), "a response after the last"
        self.responses.append(response)
        if flags == FINAL:
            self.ended.set()

    def is_cancelled(self) -> bool:
        return False


@pytest.fixture
def log() -> list[str]:
    """What the backend logs of its own defects."""
    return []


@pytest.fixture
def backend(repository: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> TritonPythonModel:
    def response(tensors: Any = (), error: Any = None) -> SimpleNamespace:
        return SimpleNamespace(tensors=tensors, error=error)

    def failure(message: str, code: int) -> SimpleNamespace:
        return SimpleNamespace(message=message, code=code)

    failure.INVALID_ARG, failure.UNAVAILABLE, failure.INTERNAL = range(3)  # type: ignore[attr-defined]
    utils = SimpleNamespace(
        Tensor=Tensor,
        InferenceResponse=response,
        TritonError=failure,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
        Logger=SimpleNamespace(log_error=log.append),
        get_input_tensor_by_name=lambda request, name: request.inputs.get(name),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    parameters = {"device": "cpu", "rows": "2", "waiting": "6", "kv_cache_gib": "0.2", "media_folder": ""}
    parameters |= {"max_image_pixels": "50000000", "require_verified": "false"}
    config = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
    model = TritonPythonModel()
    model.initialize(
        {"model_config": json.dumps(config), "model_repository": str(repository / "ernie"), "model_version": "1"}
    )
    return model


def request(sender: Sender, content: Any, options: dict[str, Any]) -> SimpleNamespace:
    given = {"messages": json.dumps([{"role": "user", "content": content}]), "sampling_parameters": json.dumps(options)}
    return SimpleNamespace(
        inputs={name: Tensor(name, np.array([text.encode()], np.object_)) for name, text in given.items()},
        get_response_sender=lambda: sender,
        timeout=lambda: 0,
    )


@pytest.mark.parametrize("kind", REQUESTS)
def test_unloading_ends_what_is_answered_and_what_is_prepared(
    backend: TritonPythonModel, log: list[str], kind: str
) -> None:
    senders = [Sender() for _ in range(5)]
    backend.execute([request(sender, *REQUESTS[kind]) for sender in senders])
    time.sleep(1)
    assert not any(sender.ended.is_set() for sender in senders)
    unloading = threading.Thread(target=backend.finalize, daemon=True)
    unloading.start()
    unloading.join(15)
    assert not unloading.is_alive()
    assert all(sender.ended.is_set() for sender in senders) and not log
    assert not backend.stepping.is_alive()
    assert all(worker._process.poll() is not None for worker in backend.pool._running)
    errors = [sender.responses[-1].error for sender in senders]  # an answer may be cancelled before it is ended
    assert {error.message for error in errors if error is not None} <= {ENDED}
    assert kind == "text that goes on" or None not in errors
