"""What a server allows and offers, fixed when it starts."""

import dataclasses
from dataclasses import dataclass

from ernie_export.common.errors import UserError

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Settings:
    """model_name: what requests call the model.

    api_keys: one of them must come with a request; none: no key is asked for. hosts: names under which the server may
    be addressed (the Host header without its port), so that no web page reaches a loopback server by a name of its own;
    None: any. allow_urls: hosts that pictures and clips may be fetched from.

    Together: max_requests choices are worked on or wait, and max_waiting_bytes of bodies; more is refused with 429.
    Of one request: timeout seconds from its head to the last token; max_body bytes, max_text of them that are no
    picture or clip; max_media pictures and clips; max_pixels of all its pictures and sampled frames; max_frames and
    max_seconds of a clip before sampling; max_prompt_tokens; max_new_tokens, default_new_tokens where it doesn't say;
    max_choices (`n`).

    fetch_seconds: the longest for one address; preprocessors: requests with media preprocessed at a time;
    drain_seconds: how long running requests may take after SIGTERM.
    """

    model_name: str
    api_keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = LOOPBACK_HOSTS
    allow_urls: tuple[str, ...] = ()
    max_requests: int = 80
    max_waiting_bytes: int = 256 * 2**20
    timeout: float = 300.0
    max_body: int = 32 * 2**20
    max_text: int = 4 * 2**20
    max_media: int = 16
    max_pixels: int = 256_000_000
    max_frames: int = 20_000
    max_seconds: float = 600.0
    max_prompt_tokens: int = 131_072
    max_new_tokens: int = 4096
    default_new_tokens: int = 1024
    max_choices: int = 8
    fetch_seconds: float = 20.0
    preprocessors: int = 2
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not 0 < value < float("inf"):
                raise UserError(f"{field.name}: expected a finite number above 0, found {value}")
        if not self.model_name:
            raise UserError("model_name: expected a name, found none")
        if 2 * self.max_body > self.max_waiting_bytes:  # a body, and as much again that its addresses may hold
            raise UserError(f"max_body: expected at most {self.max_waiting_bytes // 2}, found {self.max_body}")
