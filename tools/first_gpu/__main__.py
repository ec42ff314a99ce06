"""Run every step and write the report.

    python -m tools.first_gpu -o first-gpu

Exit code 0: no step failed, though some may have been skipped; 1: some failed; 2: an option is wrong.
"""

import sys
from pathlib import Path

import click

from ernie_export.common.errors import InvalidValue, UserError
from ernie_export.common.gpu import detect_gpu
from tools.first_gpu.report import write_report
from tools.first_gpu.session import FAILED, ROOT, Session
from tools.first_gpu.steps import all_steps


@click.command(context_settings={"show_default": True})
@click.option("-o", "--output", type=click.Path(path_type=Path), default="first-gpu", help="Folder of the run.")
@click.option(
    "--checkpoint", type=click.Path(path_type=Path, exists=True), default=ROOT / "examples" / "mini-ernie",
    show_default="the small one", help="Checkpoint to export.",
)  # fmt: skip
@click.option("--device", "device_name", help="The GPU as ernie-plan knows it, for the roof by its data sheet.")
@click.option("--only", multiple=True, metavar="STEP", help="This step alone. May be repeated.")
@click.option("--minutes", type=click.FloatRange(min=0.1), default=20, help="That one command may take.")
@click.option("--rehearse", is_flag=True, help="Run the same steps on ONNX Runtime's CPU engine, too.")
def main(
    output: Path, checkpoint: Path, device_name: str | None, only: tuple[str, ...], minutes: float, rehearse: bool
) -> None:
    """Build, verify and measure the small checkpoint on this machine's GPU, and write one report to send back."""
    steps = dict(all_steps(rehearse))
    try:
        for name in only:
            if name not in steps:
                raise InvalidValue("--only", f"some of {', '.join(steps)}", name)
        session = Session(output.resolve(), checkpoint.resolve(), detect_gpu(), device_name, 60 * minutes)
        session.out.mkdir(parents=True, exist_ok=True)
        for name in only or steps:
            outcome = session.do(name, steps[name])
            print(f"{outcome.status:8}{name:16}{outcome.seconds:8.1f} s  {outcome.detail}", flush=True)
            report = write_report(session)  # after every step: the machine may crash in the next one
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    print(f"the report, to send back: {report}")
    sys.exit(1 if any(outcome.status == FAILED for outcome in session.outcomes) else 0)


if __name__ == "__main__":
    main()
