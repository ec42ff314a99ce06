"""The model behind Triton Inference Server: a decoupled Python backend around the model's own scheduler.

`ernie-export --layout triton` writes a `model.py` that imports this; Triton runs it in a process of its own, the stub,
which alone has the module triton_python_backend_utils. Each request is answered by a thread that prepares it and sends
its responses, while one more thread steps the scheduler, which decodes all of them together.
"""

import json
import threading
import time
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from ernie_export.common.errors import InvalidValue, UserError
from ernie_export.common.json_fields import parse_json, parse_json_list
from ernie_export.runtime.batch import Sequence
from ernie_export.runtime.pipeline import Messages, load
from ernie_export.runtime.sampling import SamplingParams
from ernie_export.runtime.scheduler import Output, QueueFull, SchedulerConfig
from ernie_export.runtime.serving.http.settings import Settings as ServerSettings
from ernie_export.runtime.serving.untrusted_media import confine, count_media, limited

POLL = 0.05  # seconds between two looks at whether a request was cancelled
PREPARING = 2  # requests whose pictures and clips are decoded at a time
BOUNDS = ServerSettings(model_name="ernie")  # of one request's media: the HTTP server's
FULL = "too many requests wait: try again later"


@dataclass(frozen=True)
class Settings:
    """What the `parameters` of config.pbtxt say.

    places: requests that are answered or wait. media_folder: None where messages may name no files.
    """

    device: str
    limits: SchedulerConfig
    places: int
    media_folder: Path | None

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> "Settings":
        """UserError names a parameter that is missing, unknown or malformed. Those in capitals are Triton's own."""
        given = {name: value for name, value in parameters.items() if not name.isupper()}
        known = {"device", "rows", "waiting", "kv_cache_gib", "media_folder"}
        for name in sorted(given.keys() ^ known):
            found = "no such parameter" if name in known else "an unknown one"
            raise UserError(f"config.pbtxt: {name}: expected the parameters {', '.join(sorted(known))}, found {found}")

        def whole(name: str, unit: int = 1) -> int:
            try:
                return int(float(given[name]) * unit)
            except (ValueError, OverflowError) as e:
                raise UserError(f"config.pbtxt: {name}: expected a number, found {given[name]!r}") from e

        folder = Path(given["media_folder"]).resolve() if given["media_folder"] else None
        if folder and not folder.is_dir():
            raise UserError(f"config.pbtxt: media_folder: expected a folder, found none at {folder}")
        if whole("rows") < 1:
            raise InvalidValue("config.pbtxt: rows", "a whole number of at least 1", whole("rows"))
        places = whole("rows") + whole("waiting")
        limits = SchedulerConfig(
            max_num_seqs=whole("rows"), max_queue=places, kv_cache_bytes=whole("kv_cache_gib", 2**30)
        )
        return cls(given["device"], limits, places, folder)


@dataclass(frozen=True)
class Question:
    """The inputs of a request; `timeout`: seconds, None for no limit."""

    messages: Messages
    options: dict[str, Any]
    stream: bool
    timeout: float | None

    @classmethod
    def read(cls, request: Any) -> "Question":
        """From a `pb_utils.InferenceRequest`; UserError names the input that is not what it should be."""
        messages = parse_json_list("messages", value(request, "messages"))
        options = parse_json("sampling_parameters", value(request, "sampling_parameters", b"{}"))
        if options.get("logprobs") is not None:
            raise UserError("sampling_parameters: logprobs: expected none (there is no output for them), found some")
        return cls(messages, options, bool(value(request, "stream", False)), request.timeout() / 1e6 or None)


class TritonPythonModel:
    """What Triton's Python backend calls, by these names."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle beside model.py; the server reports what this raises and does not offer the model."""
        check_arrays()
        parameters = json.loads(args["model_config"])["parameters"]
        self.settings = Settings.from_parameters({name: entry["string_value"] for name, entry in parameters.items()})
        bundle = Path(args["model_repository"], args["model_version"], "bundle")
        self.model = load(bundle, device=self.settings.device, scheduler_config=self.settings.limits)
        self.places = threading.BoundedSemaphore(self.settings.places)
        self.preparing = threading.Semaphore(PREPARING)
        self.answering = ThreadPoolExecutor(self.settings.places, "answer")
        self.stepping = threading.Thread(target=self.model.scheduler.run, name="step", daemon=True)
        self.stepping.start()

    def execute(self, requests: list[Any]) -> None:
        """Take requests on and return at once: responses follow from other threads (decoupled)."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                question = Question.read(request)
                if not self.places.acquire(blocking=False):
                    raise QueueFull
            except (UserError, QueueFull) as e:
                send_error(sender, e)
            else:
                self.answering.submit(self.answer, question, sender)

    def finalize(self) -> None:
        """End what is still being answered, and free the engine."""
        self.model.close()
        self.answering.shutdown()
        self.stepping.join()

    def answer(self, question: Question, sender: Any) -> None:
        """Send the responses of one request, the last of them flagged as final; every failure is a response too."""
        try:
            for response, last in self.responses(question, sender):
                send(sender, response, last)
        except Exception as e:
            send_error(sender, e)
        finally:
            self.places.release()

    def sequence(self, question: Question) -> Sequence:
        """A question preprocessed and its media encoded. Raises UserError."""
        params = SamplingParams.from_options(question.options)
        messages = confine(question.messages, self.settings.media_folder)
        media = count_media(messages)
        if media > BOUNDS.max_media:
            raise UserError(f"messages: expected at most {BOUNDS.max_media} pictures and clips, found {media}")
        with self.preparing if media else nullcontext():
            deadline = time.monotonic() + (question.timeout or BOUNDS.timeout)
            prepared = limited(self.model.preprocessor, BOUNDS, media, deadline).prepare(messages)
            return self.model.begin(self.model.prompt(prepared), params)

    def responses(self, question: Question, sender: Any) -> Generator[tuple[dict[str, Any], bool], None, None]:
        """The outputs of each response, and whether it is the last."""
        outputs: SimpleQueue[Output] = SimpleQueue()
        request = self.model.scheduler.submit(lambda: self.sequence(question), outputs.put, question.timeout)
        text, tokens, last = "", [], False
        while not last:
            if sender.is_cancelled():
                request.cancel()
            try:
                output = outputs.get(timeout=POLL)
            except Empty:
                continue
            if output.error is not None:
                raise output.error
            text, last = text + output.text, bool(output.finish_reason)
            tokens += [] if output.token is None else [output.token]
            if question.stream or last:
                yield (
                    {
                        "text": np.array([text.encode()], np.object_),
                        "tokens": np.array(tokens, np.int64),
                        "prompt_tokens": np.array([len(request.sequence.prompt.input_ids)], np.int64),
                        "finish_reason": np.array([output.finish_reason.encode()], np.object_),
                    },
                    last,
                )
                text, tokens = "", []


def check_arrays() -> None:
    """Refuse a Python backend built for NumPy 1 under NumPy 2, which reads zero for the strides of every array.

    Its pybind11 is older than 2.12, so is that of Triton 2.51; the server would accept requests and crash on the first.
    """
    import triton_python_backend_utils as pb_utils

    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        found = pb_utils.Tensor.from_dlpack("probe", np.arange(1, 4)).as_numpy().tolist()
        if found != [1, 2, 3]:
            raise UserError(
                f"tritonserver: expected a Python backend built for NumPy 2, or NumPy 1.26 in its environment; "
                f"found NumPy {np.__version__}, whose arrays it misreads"
            )


def value(request: Any, name: str, default: Any = None) -> Any:
    """The one element of an input, or `default` where the request has no such input."""
    import triton_python_backend_utils as pb_utils

    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return default
    array = tensor.as_numpy()
    if array.size != 1:
        raise UserError(f"{name}: expected one element, found {array.size}")
    return array.reshape(-1)[0]


def send(sender: Any, response: Mapping[str, np.ndarray], last: bool) -> None:
    """Send one response."""
    import triton_python_backend_utils as pb_utils

    tensors = [pb_utils.Tensor(name, array) for name, array in response.items()]
    flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
    sender.send(pb_utils.InferenceResponse(tensors), flags=flags)


def send_error(sender: Any, error: Exception) -> None:
    """Send an error in one line as the only or last response; what is a defect of ours goes to Triton's log in full."""
    import triton_python_backend_utils as pb_utils

    if isinstance(error, UserError):
        failure = pb_utils.TritonError(" ".join(str(error).split()), pb_utils.TritonError.INVALID_ARG)
    elif isinstance(error, QueueFull):
        failure = pb_utils.TritonError(FULL, pb_utils.TritonError.UNAVAILABLE)
    else:
        import traceback

        pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
        failure = pb_utils.TritonError(f"internal error: {type(error).__name__}", pb_utils.TritonError.INTERNAL)
    sender.send(pb_utils.InferenceResponse(error=failure), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
