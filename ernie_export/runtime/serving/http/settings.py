"""The settings of an HTTP server, fixed when it starts."""

import re
from dataclasses import dataclass

from ernie_export.common.errors import InvalidValue
from ernie_export.runtime.answer_length import DEFAULT_NEW_TOKENS, MAX_NEW_TOKENS
from ernie_export.runtime.serving.body_size import MAX_BODY, MAX_TEXT
from ernie_export.runtime.serving.media_limits import MediaLimits, check_positive

_ORIGIN = re.compile(r"https?://(\[[0-9a-fA-F:]+\]|[a-zA-Z0-9._-]+)(:\d+)?")
_ROOT_PATH = re.compile(r"(/[a-zA-Z0-9._~-]+)+")
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Settings:
    """The settings of an HTTP server.

    Attributes:
        model_name: What requests call the model.
        api_keys: Keys of which a request must bring one; with none, no key is asked for.
        hosts: Names under which the server may be addressed (the Host header without its port), so that no web page
            reaches a loopback server by a name of its own; None: any.
        allow_urls: Hosts that images and videos may be fetched from.
        max_requests: Choices that run or wait together; more are refused with 429.
        max_waiting_bytes: Bytes of request bodies held together; more are refused with 429.
        max_feature_bytes: Bytes of the features of images and videos that admitted requests hold together; more are
            refused with 429. One request of 131,072 tokens at the released size takes 1.3 GB.
        timeout: Seconds from a request's head to its last token.
        max_body: Bytes of a request's body.
        max_text: Bytes of a body that are no image or video.
        media: Limits on the images and videos of a request.
        max_prompt_tokens: Tokens of a prompt.
        max_new_tokens: Tokens of an answer; a request that asks for more gets no more than these.
        default_new_tokens: Tokens of an answer where neither the request nor `generation_config` says.
        generation_config: What options requests have that do not say: "auto" for the bundle's generation_config.json,
            "vllm" for vLLM's neutral values, else a file or its folder.
        max_choices: Choices of a request (`n`).
        fetch_seconds: Seconds for fetching one address.
        preprocessors: Requests with media that are preprocessed at a time.
        max_connections: Connections that are open together; for one more, the longest idle one is closed.
        drain_seconds: Seconds that running requests may take after SIGTERM.
        ignore_tools: Whether a request with tools is answered as if it had none.
        allowed_origins: Origins whose web pages may call this server from a browser, such as "https://chat.example".
        access_log: Whether each request is logged on stdout.
        json_logs: Whether lines of the logs are JSON.
        otlp_endpoint: Address of a collector of OpenTelemetry's traces; empty for none.
        root_path: The prefix of all paths behind a proxy, such as "/ernie".
    """

    model_name: str
    api_keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = LOOPBACK_HOSTS
    allow_urls: tuple[str, ...] = ()
    max_requests: int = 80
    max_waiting_bytes: int = 256 * 2**20
    max_feature_bytes: int = 4 * 2**30
    timeout: float = 300.0
    max_body: int = MAX_BODY
    max_text: int = MAX_TEXT
    media: MediaLimits = MediaLimits()
    max_prompt_tokens: int = 131_072
    max_new_tokens: int = MAX_NEW_TOKENS
    default_new_tokens: int = DEFAULT_NEW_TOKENS
    generation_config: str = "auto"
    max_choices: int = 8
    fetch_seconds: float = 20.0
    preprocessors: int = 2
    max_connections: int = 1024
    drain_seconds: float = 30.0
    ignore_tools: bool = False
    allowed_origins: tuple[str, ...] = ()
    root_path: str = ""
    access_log: bool = False
    json_logs: bool = False
    otlp_endpoint: str = ""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                check_positive(name, value)
        for origin in self.allowed_origins:
            if not _ORIGIN.fullmatch(origin):
                raise InvalidValue("allowed_origins", "an origin such as https://chat.example", origin)
        if self.root_path and not _ROOT_PATH.fullmatch(self.root_path):
            raise InvalidValue("root_path", "a path such as /ernie", self.root_path)
        if not self.model_name:
            raise InvalidValue("model_name", "a name", "none")
        if 2 * self.max_body > self.max_waiting_bytes:  # a body, and as much again that its addresses may hold
            raise InvalidValue("max_body", f"at most {self.max_waiting_bytes // 2}", self.max_body)
