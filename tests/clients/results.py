"""What was tried with each client, and the table of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

State = Literal["yes", "no", "failed"]


@dataclass(frozen=True)
class Result:
    """One thing that was tried.

    Attributes:
        what: What it was.
        state: "yes" if it works, "no" where the client's own limit is in the way, "failed" if it should work.
        detail: Why not.
    """

    what: str
    state: State
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """What was tried with a client. `versions` holds the version of each of its packages."""

    name: str
    versions: dict[str, str]
    results: tuple[Result, ...]

    @classmethod
    def read(cls, name: str, versions: dict[str, str], file: Path, ended: str | None) -> Self:
        """Return the report of a script that has run.

        Args:
            name: The client's name.
            versions: The version of each of its packages.
            file: What the script wrote: a line of JSON for each thing.
            ended: How the script ended where it did not end well.
        """
        lines = file.read_text().splitlines() if file.is_file() else []
        results = [Result(**json.loads(line)) for line in lines]
        if ended is not None:
            results.append(Result("the script", "failed", ended))
        elif not results:
            results.append(Result("the script", "failed", "it tried nothing"))
        return cls(name, versions, tuple(results))

    @property
    def failed(self) -> bool:
        return any(result.state == "failed" for result in self.results)


def table(reports: list[Report]) -> str:
    """Return the reports as a table in Markdown."""
    lines = ["| client | works | does not |", "| --- | --- | --- |"]
    for report in reports:
        versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
        works = ", ".join(result.what for result in report.results if result.state == "yes")
        cannot = [f"{result.what}: {result.detail}" for result in report.results if result.state == "no"]
        fails = [f"**{result.what}: {result.detail}**" for result in report.results if result.state == "failed"]
        cells = (versions, works, "; ".join(fails + cannot))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
