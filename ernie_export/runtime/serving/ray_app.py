"""Serve a bundle on Ray Serve: replicas of the HTTP server's application, each with a model of its own.

    serve run ernie_export.runtime.serving.ray_app:build bundle=/models/ernie replicas=2 gpus=0.5

Ray's proxy listens, by default on loopback. It distributes requests among the replicas, passes streams through and
restarts a replica that is lost. With `api_key_file` the replicas require keys, as ernie-serve does.
"""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ernie_export.common.manifest import Manifest
from ernie_export.runtime.pipeline import load
from ernie_export.runtime.scheduler_config import SchedulerConfig
from ernie_export.runtime.serving.http.app import create_app
from ernie_export.runtime.serving.http.guard import read_keys
from ernie_export.runtime.serving.http.settings import LOOPBACK_HOSTS, Settings
from ernie_export.runtime.serving.media_limits import MediaLimits


class Options(BaseModel):
    """The options of `build`; on the command line of `serve run` they are written NAME=VALUE.

    Attributes:
        bundle: Folder of the bundle, at the same path on every machine.
        replicas: Number of replicas, the fewest where `max_replicas` is greater.
        max_replicas: Most replicas: Ray adds some while requests exceed `target_requests`, and removes them again.
        target_requests: Concurrent requests of a replica above which Ray adds another.
        cpus: Cores that a replica reserves.
        gpus: GPUs that a replica reserves. With a fraction, several replicas use one GPU, whose memory must hold the
            weights and the KV caches of all.
        device: "cpu" or "cuda"; by default "cuda" if a GPU is reserved.
        threads: Cores of one operator; by default as many as are reserved.
        model_name: What requests call the model; by default the folder's name.
        rows: Sequences of a replica that decode together.
        queue: Requests of a replica that wait; more are refused with 429.
        kv_cache_gib: Most memory of a replica's KV cache, in GiB.
        max_image_pixels: Most pixels of one image.
        generation_config: Sampling of requests that do not say: "auto", as the bundle's generation_config.json; "vllm",
            neutral; or a file at the same path on every machine.
        require_verified: Refuse a bundle without a record of `ernie-verify --record`.
        api_key_file: File of API keys, at the same path on every machine.
        allowed_hosts: Names by which clients call the proxy, besides localhost; any if there are keys and none is
            listed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Path
    replicas: int = Field(default=1, ge=1)
    max_replicas: int | None = None
    target_requests: float = Field(default=8, gt=0)
    cpus: float = Field(default=1, ge=0)
    gpus: float = Field(default=0, ge=0)
    device: str | None = None
    threads: int | None = Field(default=None, ge=1)
    model_name: str | None = None
    rows: int = Field(default=16, ge=1)
    queue: int = Field(default=64, ge=1)
    kv_cache_gib: float = Field(default=4, gt=0)
    max_image_pixels: int = Field(default=MediaLimits.max_image_pixels, ge=1)
    generation_config: str = Settings.generation_config
    require_verified: bool = False
    api_key_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()

    @model_validator(mode="after")
    def check(self) -> "Options":
        """Raise ValueError if `max_replicas` is less than `replicas`."""
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas: expected at least {self.replicas} (replicas), found {self.max_replicas}")
        return self

    def deployment(self) -> dict[str, Any]:
        """Return the options of Ray Serve's deployment."""
        scale: dict[str, Any] = {"num_replicas": self.replicas}
        if self.max_replicas is not None:
            scale = {
                "autoscaling_config": {
                    "min_replicas": self.replicas,
                    "max_replicas": self.max_replicas,
                    "target_ongoing_requests": self.target_requests,
                }
            }
        return scale | {
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus},
            "max_ongoing_requests": self.rows + self.queue,
            "health_check_period_s": 5,
        }


class Replica:
    """One replica: a model and its HTTP application, in a process that Ray starts."""

    def __init__(self, options: Options) -> None:
        self.options = options
        device = options.device or ("cuda" if options.gpus else "cpu")
        config = SchedulerConfig(
            max_num_seqs=options.rows,
            max_queue=options.rows + options.queue,
            kv_cache_bytes=int(options.kv_cache_gib * 2**30),
        )
        threads = options.threads or max(1, int(options.cpus))
        self.model = load(
            options.bundle,
            threads=threads,
            max_image_pixels=options.max_image_pixels,
            device=device,
            scheduler_config=config,
            require_verified=options.require_verified,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application of this replica.

        Without keys it accepts only the Host names of this machine and `allowed_hosts`: a web page can reach Ray's
        proxy on loopback by a name of its own (DNS rebinding).
        """
        options = self.options
        api_keys = read_keys(options.api_key_file) if options.api_key_file else ()
        any_host = bool(api_keys) and not options.allowed_hosts
        settings = Settings(
            model_name=options.model_name or options.bundle.name,
            api_keys=api_keys,
            hosts=None if any_host else (*LOOPBACK_HOSTS, *(name.lower() for name in options.allowed_hosts)),
            max_requests=options.rows + options.queue,
            media=MediaLimits.with_image_pixels(options.max_image_pixels),
            generation_config=options.generation_config,
        )
        self.application = create_app(self.model, settings)
        return self.application

    def check_health(self) -> None:
        """Raise RuntimeError if the model's thread has ended: Ray then replaces the replica."""
        if not self.application.state.service.alive:
            raise RuntimeError("the model's thread has ended")

    def __del__(self) -> None:
        if hasattr(self, "model"):
            self.model.close()


def build(options: Options) -> Any:
    """Return the Ray Serve application of a bundle. Raises InvalidFile if the folder is no bundle."""
    from ray import serve

    options = options.model_copy(update={"bundle": options.bundle.resolve()})
    Manifest.read(options.bundle)
    return serve.deployment(name="ernie", **options.deployment())(serve.ingress()(Replica)).bind(options)
