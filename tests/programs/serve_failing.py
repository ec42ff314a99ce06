"""Run ernie-serve on a model whose engine fails at every prompt."""

from pathlib import Path
from typing import Any

from ernie_export.runtime import pipeline
from ernie_export.runtime.cli.serve import main
from ernie_export.runtime.scheduler_config import SchedulerConfig
from tests.fakes.echo import echo_model
from tests.fakes.engine import Delegate, FakeEngine


def fail(*arguments: Any) -> None:
    """Fail as an engine may, with a text that would make lines of its own."""
    raise RuntimeError("out of order\n2026-01-01T00:00:00.000Z INFO request status=200")


def load(bundle: Path, threads: int | None, scheduler_config: SchedulerConfig, **options: Any) -> pipeline.Model:
    """Return a model whose engine fails."""
    engine = Delegate(FakeEngine(vocabulary=512, hidden=128, end=2), prefill=fail)
    return echo_model(bundle, scheduler_config, engine)


pipeline.load = load  # type: ignore[assignment]  # as far as ernie-serve calls it
main()
