"""What happens to an engine between its opening and its first request."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ernie_export.common.manifest import Manifest
from ernie_export.runtime.engines import Engine, Warmable
from ernie_export.runtime.scheduler_config import SchedulerConfig


def ignore(fraction: float) -> None:
    """Take no note of how far the engine's first calls are."""


def warmed(engine: Engine[Any], config: SchedulerConfig, on_warm: Callable[[float], None]) -> Engine[Any]:
    """Return `engine` after the calls that it makes before the first request; close it if one of them fails."""
    if isinstance(engine, Warmable):
        try:
            engine.warm(config.max_num_seqs, on_warm)
        except BaseException:
            engine.close()
            raise
    return engine


def fit_to_engines(manifest: Manifest, config: SchedulerConfig) -> SchedulerConfig:
    """Return `config` with no more sequences than the bundle's compiled engines, if it has any, decode together."""
    if manifest.engines is None:
        return config
    return replace(config, max_num_seqs=min(config.max_num_seqs, manifest.engines.max_batch_size))
