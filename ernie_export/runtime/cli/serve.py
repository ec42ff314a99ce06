"""ernie-serve: an HTTP server of OpenAI's chat completions around a bundle."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import click

from ernie_export.common.command import as_bytes, run
from ernie_export.common.errors import InvalidValue
from ernie_export.runtime.cli.options import GIB, VERIFIED, Flag, click_options
from ernie_export.runtime.cli.warm_bar import WarmBar
from ernie_export.runtime.devices import DEVICES
from ernie_export.runtime.scheduler_config import SchedulerConfig
from ernie_export.runtime.serving.http.settings import LOOPBACK_HOSTS, Settings
from ernie_export.runtime.serving.media_limits import MediaLimits

MIB = 2**20


@dataclass(frozen=True)
class ServeOptions:
    """The options of ernie-serve: the one table of their names, types, defaults and help texts."""

    host: Annotated[str, Flag("Address to listen on. Any but this machine's own needs a key.")] = "127.0.0.1"
    port: Annotated[int, Flag("0: any free one; it is printed.", click.IntRange(0, 65535))] = 8000
    api_key_file: Annotated[Path | None, Flag("Keys, one a line.", click.Path(path_type=Path), metavar="FILE")] = None
    allowed_hosts: Annotated[
        tuple[str, ...],
        Flag(
            "A name that clients call this server by, besides localhost. May be repeated.",
            names=("--allowed-host",),
            metavar="NAME",
        ),
    ] = ()
    model_name: Annotated[str | None, Flag("What requests call the model.  [default: the folder's name]")] = None
    allow_urls: Annotated[
        tuple[str, ...],
        Flag(
            "Fetch images and videos from this host, if it has a public address. May be repeated.",
            names=("--allow-url",),
            metavar="HOST[:PORT]",
        ),
    ] = ()
    device: Annotated[str, Flag("cuda: the first NVIDIA GPU.", click.Choice(DEVICES))] = "cpu"
    threads: Annotated[int | None, Flag("Cores for the model.  [default: all]", click.IntRange(1))] = None
    kv_cache: Annotated[float, Flag("Most memory for keys and values.", metavar="GIB")] = (
        SchedulerConfig.kv_cache_bytes / GIB
    )
    feature_cache: Annotated[float, Flag("Most memory for features of images and videos.", metavar="MIB")] = (
        SchedulerConfig.feature_cache_bytes / MIB
    )
    max_num_seqs: Annotated[
        int, Flag("Answers that run together.", click.IntRange(1, 4096), names=("--max-num-seqs", "--rows"))
    ] = SchedulerConfig.max_num_seqs
    queue: Annotated[
        int, Flag("Answers that wait for a slot; more are refused with 429.", click.IntRange(0, 2**20))
    ] = SchedulerConfig.max_queue
    timeout: Annotated[float, Flag("Longest time for one request.", metavar="SECONDS")] = Settings.timeout
    drain: Annotated[float, Flag("Time to finish what runs on SIGTERM.", metavar="SECONDS")] = Settings.drain_seconds
    max_body: Annotated[float, Flag("Largest request.", metavar="MIB")] = Settings.max_body / MIB
    max_media: Annotated[int, Flag("Most images and videos in a request.", click.IntRange(1))] = MediaLimits.max_items
    max_pixels: Annotated[
        int | None,
        Flag(
            "Of all images and sampled frames of a request.  "
            f"[default: {MediaLimits.max_pixels}, or --max-image-pixels if it is larger]",
            click.INT,
        ),
    ] = None
    max_image_pixels: Annotated[int, Flag("Of one image.", click.IntRange(1))] = MediaLimits.max_image_pixels
    require_verified: Annotated[bool, VERIFIED] = False
    max_frames: Annotated[int, Flag("Of a video, before sampling.")] = MediaLimits.max_frames
    max_seconds: Annotated[float, Flag("Longest video.")] = MediaLimits.max_seconds
    max_prompt_tokens: Annotated[int, Flag("Longest prompt.")] = Settings.max_prompt_tokens
    max_new_tokens: Annotated[int, Flag("Longest answer.")] = Settings.max_new_tokens
    generation_config: Annotated[
        str,
        Flag(
            "Sampling of requests that do not say: auto, as the bundle's generation_config.json; vllm, neutral; "
            "or a file.",
            metavar="auto|vllm|PATH",
        ),
    ] = Settings.generation_config
    max_choices: Annotated[int, Flag("Most answers to one request.")] = Settings.max_choices
    max_connections: Annotated[int, Flag("Connections that are open together.", click.IntRange(1))] = (
        Settings.max_connections
    )
    allowed_origins: Annotated[
        tuple[str, ...],
        Flag(
            "Let web pages of this origin call the server from a browser. May be repeated.",
            names=("--allowed-origin",),
            metavar="ORIGIN",
        ),
    ] = ()
    root_path: Annotated[str, Flag("Prefix of all paths behind a proxy, such as /ernie.", metavar="PATH")] = ""
    access_log: Annotated[bool, Flag("Log each request on stdout.")] = False
    log_format: Annotated[str, Flag("Of the logs' lines.", click.Choice(("text", "json")))] = "text"
    otlp_traces_endpoint: Annotated[
        str, Flag("Send a span of each request to this collector, over HTTP (extra otel).", metavar="URL")
    ] = ""
    ignore_tools: Annotated[bool, Flag("Answer requests with tools as if they had none.")] = False

    def settings(self, bundle: Path, api_keys: tuple[str, ...]) -> Settings:
        """Return the settings of the HTTP server. Raises InvalidValue for an option out of range."""
        max_body = as_bytes("--max-body", self.max_body, MIB)
        any_host = not is_loopback(self.host) and not self.allowed_hosts
        max_pixels = max(MediaLimits.max_pixels, self.max_image_pixels) if self.max_pixels is None else self.max_pixels
        hosts = (*LOOPBACK_HOSTS, *(name.lower() for name in self.allowed_hosts))
        return Settings(
            model_name=self.model_name or bundle.resolve().name,
            api_keys=api_keys,
            hosts=None if any_host else hosts,
            allow_urls=self.allow_urls,
            max_requests=self.max_num_seqs + self.queue,
            max_waiting_bytes=max(Settings.max_waiting_bytes, 4 * max_body),
            timeout=self.timeout,
            max_body=max_body,
            media=MediaLimits(
                max_items=self.max_media,
                max_pixels=max_pixels,
                max_image_pixels=self.max_image_pixels,
                max_frames=self.max_frames,
                max_seconds=self.max_seconds,
            ),
            max_prompt_tokens=self.max_prompt_tokens,
            max_new_tokens=self.max_new_tokens,
            default_new_tokens=min(Settings.default_new_tokens, self.max_new_tokens),
            generation_config=self.generation_config,
            max_choices=self.max_choices,
            max_connections=self.max_connections,
            drain_seconds=self.drain,
            ignore_tools=self.ignore_tools,
            allowed_origins=self.allowed_origins,
            root_path=self.root_path,
            access_log=self.access_log,
            json_logs=self.log_format == "json",
            otlp_endpoint=self.otlp_traces_endpoint,
        )

    def scheduler_config(self) -> SchedulerConfig:
        """Return the configuration of the scheduler. Its queue holds every request that the server admits."""
        return SchedulerConfig(
            max_num_seqs=self.max_num_seqs,
            max_queue=self.max_num_seqs + self.queue,
            kv_cache_bytes=as_bytes("--kv-cache", self.kv_cache, GIB),
            feature_cache_bytes=as_bytes("--feature-cache", self.feature_cache, MIB),
        )


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.argument("bundle", type=click.Path(path_type=Path))
@click_options(ServeOptions)
def command(bundle: Path, options: ServeOptions) -> None:
    """Serve the model in the folder BUNDLE over HTTP.

    /v1/chat/completions and others are for OpenAI's clients; a page is at /; /health, /ready and /metrics are for
    operators.
    """
    try:
        from ernie_export.runtime.pipeline import load
        from ernie_export.runtime.serving.http import tracing
        from ernie_export.runtime.serving.http.app import create_app
        from ernie_export.runtime.serving.http.guard import read_keys
        from ernie_export.runtime.serving.http.process import listen, serve
    except ModuleNotFoundError as e:
        raise click.UsageError(f"serving needs the extra 'serve' (no module {e.name}): pip install .[serve]") from e
    api_keys = read_keys(options.api_key_file) if options.api_key_file else ()
    if not is_loopback(options.host) and not api_keys:
        raise InvalidValue(f"--host {options.host}", "--api-key-file, since others can reach it", "none")
    if options.otlp_traces_endpoint:
        tracing.check_installed()
    settings = options.settings(bundle, api_keys)
    config = options.scheduler_config()
    with listen(options.host, options.port) as listener:
        with WarmBar() as bar:
            model = load(
                bundle,
                options.threads,
                max_image_pixels=options.max_image_pixels,
                device=options.device,
                scheduler_config=config,
                on_warm=bar,
                require_verified=options.require_verified,
            )
        with model:
            serve(create_app(model, settings), listener)


def is_loopback(host: str) -> bool:
    """Return whether this machine alone can reach an address to listen on; False for any name but localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ernie-serve on `arguments`, by default those of this process, and exit."""
    run(command, arguments)
