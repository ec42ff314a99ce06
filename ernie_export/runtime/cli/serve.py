"""ernie-serve: an HTTP server of OpenAI's chat completions around a bundle."""

import ipaddress
from pathlib import Path

import click

from ernie_export.common.command import as_bytes, run
from ernie_export.common.errors import UserError
from ernie_export.runtime.cli.options import DEVICE_OPTION

MIN_KEY = 16  # characters: shorter ones can be guessed


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", help="Address to listen on. Any but this machine's own needs a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0: any free one; it is printed.")
@click.option("--api-key-file", type=click.Path(path_type=Path), metavar="FILE", help="Keys, one a line.")
@click.option("--allowed-host", "allowed_hosts", multiple=True, metavar="NAME",
              help="A name that clients call this server by, besides localhost. May be repeated.")  # fmt: skip
@click.option("--model-name", default=None, help="What requests call the model.  [default: the folder's name]")
@click.option("--allow-url", "allow_urls", multiple=True, metavar="HOST[:PORT]",
              help="Fetch pictures and clips from this host, if it has a public address. May be repeated.")  # fmt: skip
@DEVICE_OPTION
@click.option("--threads", type=click.IntRange(1), default=None, help="Cores for the model.  [default: all]")
@click.option("--kv-cache", type=float, default=4.0, metavar="GIB", help="Most memory for keys and values.")
@click.option("--feature-cache", type=float, default=512.0, metavar="MIB", help="Features of pictures and clips kept.")
@click.option("--rows", type=click.IntRange(1, 4096), default=16, help="Answers that run together.")
@click.option("--queue", type=click.IntRange(0, 2**20), default=64,
              help="Answers that wait for a place; more are refused with 429.")  # fmt: skip
@click.option("--timeout", type=float, default=300.0, metavar="SECONDS", help="Longest time for one request.")
@click.option("--drain", type=float, default=30.0, metavar="SECONDS", help="Time to finish what runs on SIGTERM.")
@click.option("--max-body", type=float, default=32.0, metavar="MIB", help="Largest request.")
@click.option("--max-media", type=int, default=16, help="Most pictures and clips in a request.")
@click.option("--max-pixels", type=int, default=256_000_000, help="Of all pictures and sampled frames of a request.")
@click.option("--max-frames", type=int, default=20_000, help="Of a clip, before sampling.")
@click.option("--max-seconds", type=float, default=600.0, help="Longest clip.")
@click.option("--max-prompt-tokens", type=int, default=131_072, help="Longest prompt.")
@click.option("--max-new-tokens", type=int, default=4096, help="Longest answer that may be asked for.")
@click.option("--max-choices", type=int, default=8, help="Most answers to one request.")
def command(
    bundle: Path,
    host: str,
    port: int,
    api_key_file: Path | None,
    allowed_hosts: tuple[str, ...],
    model_name: str | None,
    allow_urls: tuple[str, ...],
    device: str,
    threads: int | None,
    kv_cache: float,
    feature_cache: float,
    rows: int,
    queue: int,
    timeout: float,
    drain: float,
    max_body: float,
    max_media: int,
    max_pixels: int,
    max_frames: int,
    max_seconds: float,
    max_prompt_tokens: int,
    max_new_tokens: int,
    max_choices: int,
) -> None:
    """Serve the model in the folder BUNDLE: /v1/chat/completions for OpenAI's clients, a page at /, /health, /ready
    and /metrics for those who run it.
    """
    keys = read_keys(api_key_file) if api_key_file else ()
    loopback = is_loopback(host)
    if not loopback and not keys:
        raise UserError(f"--host {host}: expected --api-key-file, since others can reach it, found none")
    try:
        from ernie_export.runtime.pipeline import load
        from ernie_export.runtime.scheduler import SchedulerConfig
        from ernie_export.runtime.serving.http.app import create_app
        from ernie_export.runtime.serving.http.process import listen, serve
        from ernie_export.runtime.serving.http.settings import LOOPBACK_HOSTS, Settings
    except ModuleNotFoundError as e:
        raise click.UsageError(f"serving needs the extra 'serve' (no module {e.name}): pip install .[serve]") from e
    body = as_bytes("--max-body", max_body, 2**20)
    hosts = (*LOOPBACK_HOSTS, *(name.lower() for name in allowed_hosts))
    settings = Settings(
        model_name=model_name or bundle.resolve().name,
        api_keys=keys,
        hosts=hosts if loopback or allowed_hosts else None,
        allow_urls=allow_urls,
        max_requests=rows + queue,
        max_waiting_bytes=max(Settings.max_waiting_bytes, 4 * body),
        timeout=timeout,
        max_body=body,
        max_media=max_media,
        max_pixels=max_pixels,
        max_frames=max_frames,
        max_seconds=max_seconds,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        default_new_tokens=min(Settings.default_new_tokens, max_new_tokens),
        max_choices=max_choices,
        drain_seconds=drain,
    )
    limits = SchedulerConfig(
        max_num_seqs=rows,
        max_queue=rows + queue,
        kv_cache_bytes=as_bytes("--kv-cache", kv_cache, 2**30),
        feature_cache_bytes=as_bytes("--feature-cache", feature_cache, 2**20),
    )
    with listen(host, port) as listener, load(bundle, threads, device=device, scheduler_config=limits) as model:
        serve(create_app(model, settings), listener)


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file, one a line. Raises UserError for a file without any, or with one that could be guessed."""
    try:
        keys = tuple(line.strip() for line in path.read_text(encoding="ascii").splitlines() if line.strip())
    except OSError as e:
        raise UserError(f"{path}: expected a file of keys, found {e.strerror}") from e
    except ValueError as e:
        raise UserError(f"{path}: expected keys in ASCII, found other characters") from e
    if not keys:
        raise UserError(f"{path}: expected at least one key, found none")
    if any(len(key) < MIN_KEY or not key.isprintable() or " " in key for key in keys):
        raise UserError(f"{path}: expected keys of at least {MIN_KEY} characters without spaces, found another one")
    return keys


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone. A name other than localhost: no."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main() -> None:
    """Entry point of `ernie-serve`."""
    run(command)
