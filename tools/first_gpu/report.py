"""The report of a run: one HTML file that loads nothing else, with the same as JSON in it."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import jinja2

from ernie_export.common.atomic_file import write_atomically
from ernie_export.common.version import __version__
from tools.first_gpu.session import FAILED, PASSED, SKIPPED, Session

REPORT = "report.html"
JSON_REPORT = "report.json"
HOME = "~"


def write_report(session: Session) -> Path:
    """Write report.html and report.json; return the first's path. Raises CannotWrite."""
    text = json.dumps(document(session), indent=1)
    home = str(Path.home())
    if len(home) > 1:
        text = text.replace(home, HOME)  # it names a user, and is sent to others
    template = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(
        Path(__file__).with_name("report.html.jinja").read_text()
    )
    html = template.render(report=json.loads(text), text=text.replace("</", "<\\/"))
    write_atomically(session.out / JSON_REPORT, (text + "\n").encode(), "the report")
    write_atomically(session.out / REPORT, html.encode(), "the report")
    return session.out / REPORT


def document(session: Session) -> dict[str, object]:
    """Return the run for JSON."""
    counts = {status: sum(o.status == status for o in session.outcomes) for status in (PASSED, FAILED, SKIPPED)}
    return {
        "ernie_export": __version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "checkpoint": session.checkpoint.name,
        "gpu": asdict(session.gpu) if session.gpu is not None else None,
        "counts": counts,
        "steps": [asdict(outcome) for outcome in session.outcomes],
    }
