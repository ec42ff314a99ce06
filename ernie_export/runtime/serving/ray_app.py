"""A bundle on Ray Serve: replicas of the HTTP server's application, each with a model of its own.

    serve run ernie_export.runtime.serving.ray_app:build bundle=/models/ernie replicas=2 gpus=0.5

Ray's proxy is the entrance, on loopback unless told otherwise: it shares requests out among the replicas, passes
streams through and starts a lost replica anew. With `api_key_file` the replicas ask for keys, as ernie-serve does.
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


class Options(BaseModel):
    """What `build` takes; on the command line of `serve run` as NAME=VALUE.

    bundle, api_key_file: at the same path on every machine. replicas: how many; with max_replicas above it Ray adds
    some while a replica has more than target_requests in hand, and takes them away again. cpus, gpus: that a replica
    reserves; with a fraction of a GPU several share one, and their kv_cache_gib with the weights must fit it together.
    device: cpu or cuda, by default cuda where a GPU is reserved. threads: cores of one operator, by default as many as
    reserved. rows, queue, kv_cache_gib: as of ernie-serve, for each replica. allowed_hosts: names by which clients call
    the proxy, besides localhost; any where there are keys and none is listed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Path
    replicas: int = Field(1, ge=1)
    max_replicas: int | None = None
    target_requests: float = Field(8, gt=0)
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)
    device: str | None = None
    threads: int | None = Field(None, ge=1)
    model_name: str | None = None
    rows: int = Field(16, ge=1)
    queue: int = Field(64, ge=1)
    kv_cache_gib: float = Field(4, gt=0)
    api_key_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()

    @model_validator(mode="after")
    def check(self) -> "Options":
        """Refuse fewer replicas at most than at least."""
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas: expected at least {self.replicas} (replicas), found {self.max_replicas}")
        return self

    def deployment(self) -> dict[str, Any]:
        """The options of Ray Serve's deployment."""
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
    """One replica: the model, and the application around it, in a process that Ray starts."""

    def __init__(self, options: Options) -> None:
        self.options = options
        device = options.device or ("cuda" if options.gpus else "cpu")
        limits = SchedulerConfig(
            max_num_seqs=options.rows,
            max_queue=options.rows + options.queue,
            kv_cache_bytes=int(options.kv_cache_gib * 2**30),
        )
        threads = options.threads or max(1, int(options.cpus))
        self.model = load(options.bundle, threads=threads, scheduler_config=limits, device=device)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application that Ray serves of this replica.

        Without keys it answers to this machine's names and `allowed_hosts` alone: a web page reaches Ray's proxy on
        loopback by a name of its own (DNS rebinding).
        """
        options = self.options
        api_keys = read_keys(options.api_key_file) if options.api_key_file else ()
        any_host = bool(api_keys) and not options.allowed_hosts
        settings = Settings(
            model_name=options.model_name or options.bundle.name,
            api_keys=api_keys,
            hosts=None if any_host else (*LOOPBACK_HOSTS, *(name.lower() for name in options.allowed_hosts)),
            max_requests=options.rows + options.queue,
        )
        self.application = create_app(self.model, settings)
        return self.application

    def check_health(self) -> None:
        """Ray replaces a replica where this raises."""
        if not self.application.state.service.alive:
            raise RuntimeError("the model's thread has ended")

    def __del__(self) -> None:
        if hasattr(self, "model"):
            self.model.close()


def build(options: Options) -> Any:
    """The Ray Serve application of a bundle, for `serve run` and `ray.serve.run`. UserError if that is no bundle."""
    from ray import serve

    options = options.model_copy(update={"bundle": options.bundle.resolve()})
    Manifest.read(options.bundle)
    return serve.deployment(name="ernie", **options.deployment())(serve.ingress()(Replica)).bind(options)
