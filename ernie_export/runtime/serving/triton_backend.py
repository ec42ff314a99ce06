"""Serve a bundle on Triton Inference Server: a decoupled Python backend around the model's scheduler.

`ernie-export --layout triton` writes a `model.py` that imports this; Triton runs it in a process of its own, the stub,
which alone has the module triton_python_backend_utils. Each request is answered by a thread that prepares it and sends
its responses, while one more thread steps the scheduler, which decodes all of them together.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from ernie_export.common.errors import InvalidValue, Unavailable, UserError
from ernie_export.common.json_fields import parse_json, parse_json_list
from ernie_export.runtime.answer_length import served_params
from ernie_export.runtime.pipeline import load
from ernie_export.runtime.preprocess.messages import normalise
from ernie_export.runtime.scheduler import Output, QueueFull, Request
from ernie_export.runtime.scheduler_config import SchedulerConfig
from ernie_export.runtime.serving.body_size import check_size
from ernie_export.runtime.serving.media_limits import MediaLimits
from ernie_export.runtime.serving.media_pool import Cancelled, MediaPool
from ernie_export.runtime.serving.prepare import Conversation, PreparedRequest, prepare_request
from ernie_export.runtime.serving.untrusted_media import confine, count_media

POLL = 0.05  # seconds between two checks whether a request was cancelled
PREPARING = 2  # requests whose images and videos are decoded at a time
PREPARE_SECONDS = 300.0  # for decoding the videos of a request without a timeout
MAX_FEATURE_BYTES = 4 * 2**30  # of the images and videos that requests hold together
MAX_OPTIONS_BYTES = 64 * 1024
FULL = "too many requests wait: try again later"
ENDED = "the request ended before it was prepared, or the model is unloaded"


@dataclass(frozen=True)
class Settings:
    """The `parameters` of config.pbtxt.

    Attributes:
        device: "cpu" or "cuda".
        scheduler_config: The limits of the scheduler.
        max_requests: Requests that are answered or wait.
        media: The limits on the images and videos of one request.
        media_folder: The folder of files that messages may name; None if they may name none.
        require_verified: Whether to refuse a bundle without a record of ernie-verify.
    """

    device: str
    scheduler_config: SchedulerConfig
    max_requests: int
    media: MediaLimits
    media_folder: Path | None
    require_verified: bool

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> "Settings":
        """Read the parameters; those in capitals are Triton's own. Raises InvalidValue for a missing or wrong one."""
        values = {name: value for name, value in parameters.items() if not name.isupper()}
        known = {"device", "rows", "waiting", "kv_cache_gib", "max_image_pixels", "media_folder", "require_verified"}
        for name in sorted(values.keys() ^ known):
            found = "no such parameter" if name in known else "an unknown one"
            raise InvalidValue(f"config.pbtxt: {name}", f"the parameters {', '.join(sorted(known))}", found)

        def number(name: str, unit: int = 1) -> int:
            try:
                return int(float(values[name]) * unit)
            except (ValueError, OverflowError) as e:
                raise InvalidValue(f"config.pbtxt: {name}", "a number", repr(values[name])) from e

        folder = Path(values["media_folder"]).resolve() if values["media_folder"] else None
        if folder and not folder.is_dir():
            raise InvalidValue("config.pbtxt: media_folder", "a folder", f"none at {folder}")
        for name in ("rows", "max_image_pixels"):
            if number(name) < 1:
                raise InvalidValue(f"config.pbtxt: {name}", "a whole number of at least 1", number(name))
        verified = values["require_verified"]
        if verified not in ("true", "false"):
            raise InvalidValue("config.pbtxt: require_verified", "true or false", repr(verified))
        max_requests = number("rows") + number("waiting")
        scheduler_config = SchedulerConfig(
            max_num_seqs=number("rows"), max_queue=max_requests, kv_cache_bytes=number("kv_cache_gib", 2**30)
        )
        media = MediaLimits.with_image_pixels(number("max_image_pixels"))
        return cls(
            values["device"],
            scheduler_config,
            max_requests,
            media=media,
            media_folder=folder,
            require_verified=verified == "true",
        )


@dataclass(frozen=True)
class TritonRequest:
    """The inputs of a request. `timeout` is in seconds, None for no limit."""

    messages: list[dict[str, Any]]
    options: dict[str, Any]
    stream: bool
    timeout: float | None

    @classmethod
    def read(cls, request: Any) -> "TritonRequest":
        """Read a `pb_utils.InferenceRequest`. Raises UserError that names the input at fault."""
        text = input_value(request, "messages")
        check_size("messages", text)
        given = input_value(request, "sampling_parameters", b"{}")
        check_size("sampling_parameters", given, MAX_OPTIONS_BYTES)
        messages = normalise(parse_json_list("messages", text))
        options = parse_json("sampling_parameters", given)
        if options.get("logprobs") is not None:
            raise InvalidValue("sampling_parameters: logprobs", "none (there is no output for them)", "some")
        return cls(messages, options, bool(input_value(request, "stream", False)), request.timeout() / 1e6 or None)


class TritonPythonModel:
    """The model as Triton's Python backend calls it, by these names."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle beside model.py. Where this raises, the server reports the error and offers no model."""
        check_arrays()
        parameters = json.loads(args["model_config"])["parameters"]
        self.settings = Settings.from_parameters({name: entry["string_value"] for name, entry in parameters.items()})
        bundle = Path(args["model_repository"], args["model_version"], "bundle")
        media = self.settings.media
        self.model = load(
            bundle,
            max_image_pixels=media.max_image_pixels,
            device=self.settings.device,
            scheduler_config=self.settings.scheduler_config,
            require_verified=self.settings.require_verified,
        )
        self.pool = MediaPool(bundle, PREPARING, media.worker_memory)
        self.pool.start()
        self.slots = threading.BoundedSemaphore(self.settings.max_requests)
        self.preparing = threading.Semaphore(PREPARING)
        self.features = ByteBudget(MAX_FEATURE_BYTES)
        self.unloading = threading.Event()
        self.answering = ThreadPoolExecutor(self.settings.max_requests, "answer")
        self.stepping = threading.Thread(target=self.model.scheduler.run, name="step", daemon=True)
        self.stepping.start()

    def execute(self, requests: list[Any]) -> None:
        """Accept requests and return at once: responses follow from other threads (decoupled)."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                triton_request = TritonRequest.read(request)
                if not self.slots.acquire(blocking=False):
                    raise QueueFull
            except (UserError, QueueFull) as e:
                send_error(sender, e)
            else:
                self.answering.submit(self.answer, triton_request, sender)

    def finalize(self) -> None:
        """End the requests still being answered, then free the engine, which those in preparation use."""
        self.unloading.set()
        self.pool.close()
        self.model.scheduler.close()
        self.answering.shutdown()
        self.stepping.join()
        self.model.close()

    def answer(self, triton_request: TritonRequest, sender: Any) -> None:
        """Send the responses of one request, the last flagged as final. Every failure is a response too."""
        try:
            for response, last in self.responses(triton_request, sender):
                send(sender, response, last)
        except Exception as e:
            send_error(sender, e)
        finally:
            self.slots.release()

    def prepare(self, request: TritonRequest, ended: Callable[[], bool]) -> PreparedRequest:
        """Read, decode, tokenize and encode the messages of a request. Raises UserError, Cancelled."""
        deadline = time.monotonic() + (request.timeout or PREPARE_SECONDS)
        with self.turn(deadline, ended) if count_media(request.messages) else nullcontext():
            media = self.settings.media
            messages = confine(request.messages, self.settings.media_folder, media.max_file_bytes)
            return prepare_request(self.model, Conversation(messages), media, deadline, self.pool, cancelled=ended)

    @contextmanager
    def turn(self, deadline: float, ended: Callable[[], bool]) -> Iterator[None]:
        """Wait until few enough others read and decode media. Raises Cancelled where the request ends before."""
        while not self.preparing.acquire(timeout=POLL):
            if ended() or time.monotonic() > deadline:
                raise Cancelled
        try:
            yield
        finally:
            self.preparing.release()

    def responses(self, triton_request: TritonRequest, sender: Any) -> Iterator[tuple[dict[str, Any], bool]]:
        """Yield the outputs of each response, and whether it is the last."""

        def ended() -> bool:
            return self.unloading.is_set() or bool(sender.is_cancelled())

        outputs: SimpleQueue[Output] = SimpleQueue()
        with self.model.scheduler.reserve(triton_request.timeout) as reservation:
            params = served_params(self.model, triton_request.options)
            grammar = self.model.grammar(params)  # before media are decoded
            prompt = self.prepare(triton_request, ended).prompt
            with self.features.hold(prompt.features.nbytes):
                request = reservation.submit(self.model.begin(prompt, params, grammar), outputs.put)
                try:
                    yield from relay(request, outputs, triton_request.stream, ended)
                finally:
                    request.cancel()


def relay(
    request: Request, outputs: "SimpleQueue[Output]", stream: bool, ended: Callable[[], bool]
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield the outputs of each response, and whether it is the last.

    Args:
        request: The request, which is cancelled once it has ended.
        outputs: What the scheduler makes of it.
        stream: Whether each token is a response; otherwise there is one in all.
        ended: Whether the client has left, or the model is unloaded.
    """
    text = ""
    reasoning = ""
    tokens: list[int] = []
    last = False
    while not last:
        if ended():
            request.cancel()
        try:
            output = outputs.get(timeout=POLL)
        except Empty:
            continue
        if output.error is not None:
            raise Cancelled if ended() else output.error  # the scheduler ends what runs when the model is unloaded
        text += output.text
        reasoning += output.reasoning
        last = bool(output.finish_reason)
        tokens += [] if output.token is None else [output.token]
        if stream or last:
            yield (
                {
                    "text": np.array([text.encode()], np.object_),
                    "reasoning": np.array([reasoning.encode()], np.object_),
                    "tokens": np.array(tokens, np.int64),
                    "prompt_tokens": np.array([len(request.sequence.prompt.input_ids)], np.int64),
                    "finish_reason": np.array([output.finish_reason.encode()], np.object_),
                },
                last,
            )
            text = ""
            reasoning = ""
            tokens = []


class ByteBudget:
    """A number of bytes that requests may hold together."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._changing = threading.Lock()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Count `size` bytes for the block. Raises QueueFull where others hold too many."""
        self._change(-size)
        try:
            yield
        finally:
            self._change(size)

    def _change(self, size: int) -> None:
        with self._changing:
            if self._left + size < 0:
                raise QueueFull(f"{self._left} bytes are left")
            self._left += size


def check_arrays() -> None:
    """Raise Unavailable for a Python backend built for NumPy 1 under NumPy 2, which reads zero for all strides.

    Its pybind11 is older than 2.12, so is that of Triton 2.51; the server would accept requests and crash on the first.
    """
    import triton_python_backend_utils as pb_utils

    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        values = pb_utils.Tensor.from_dlpack("probe", np.arange(1, 4)).as_numpy().tolist()
        if values != [1, 2, 3]:
            raise Unavailable(
                f"tritonserver: expected a Python backend built for NumPy 2, or NumPy 1.26 in its environment; "
                f"found NumPy {np.__version__}, whose arrays it misreads"
            )


def input_value(request: Any, name: str, default: Any = None) -> Any:
    """Return the one element of an input, or `default` where the request has no such input."""
    import triton_python_backend_utils as pb_utils

    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return default
    array = tensor.as_numpy()
    if array.size != 1:
        raise InvalidValue(name, "one element", array.size)
    return array.reshape(-1)[0]


def send(sender: Any, response: Mapping[str, np.ndarray], last: bool) -> None:
    """Send one response."""
    import triton_python_backend_utils as pb_utils

    tensors = [pb_utils.Tensor(name, array) for name, array in response.items()]
    flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
    sender.send(pb_utils.InferenceResponse(tensors), flags=flags)


def send_error(sender: Any, error: Exception) -> None:
    """Send an error in one line as the only or last response. A defect of this program goes to Triton's log in full."""
    import triton_python_backend_utils as pb_utils

    if isinstance(error, UserError):
        failure = pb_utils.TritonError(" ".join(str(error).split()), pb_utils.TritonError.INVALID_ARG)
    elif isinstance(error, QueueFull):
        failure = pb_utils.TritonError(FULL, pb_utils.TritonError.UNAVAILABLE)
    elif isinstance(error, Cancelled):
        failure = pb_utils.TritonError(ENDED, pb_utils.TritonError.UNAVAILABLE)
    else:
        import traceback

        pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
        failure = pb_utils.TritonError(f"internal error: {type(error).__name__}", pb_utils.TritonError.INTERNAL)
    sender.send(pb_utils.InferenceResponse(error=failure), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
