"""Run ernie-serve on a model that answers what it is asked to say (tests/fakes/echo.py)."""

from pathlib import Path
from typing import Any

from ernie_export.runtime import pipeline
from ernie_export.runtime.cli.serve import main
from ernie_export.runtime.scheduler_config import SchedulerConfig
from tests.fakes.echo import echo_model


def load(bundle: Path, threads: int | None, scheduler_config: SchedulerConfig, **options: Any) -> pipeline.Model:
    """Return the echoing model in place of the bundle's own."""
    return echo_model(bundle, scheduler_config)


pipeline.load = load  # type: ignore[assignment]  # as far as ernie-serve calls it
main()
