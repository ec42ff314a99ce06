"""The clients: each a script and the exact versions that it needs, side by side in `python` or `node`."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PINNED = re.compile(r"(?P<name>[\w.-]+)(\[[\w,-]+\])?==(?P<version>\S+)")


@dataclass(frozen=True)
class Client:
    """A client.

    Attributes:
        name: Its name in the table.
        script: What is run.
        requirements: The file of exact versions: a requirements file, or a package.json.
        versions: The version of each package by its name, those of the client itself first.
    """

    name: str
    script: Path
    requirements: Path
    versions: dict[str, str]

    @property
    def is_python(self) -> bool:
        return self.script.suffix == ".py"


def all_clients() -> list[Client]:
    """Return every client, by name. Raises ValueError for a requirement without an exact version."""
    clients = []
    for script in sorted((HERE / "python").glob("*.py")):
        requirements = script.with_suffix(".txt")
        clients.append(Client(script.stem.replace("_", "-"), script, requirements, pinned(requirements)))
    package = HERE / "node" / "package.json"
    versions = json.loads(package.read_text())["dependencies"]
    if inexact := [f"{name} {version}" for name, version in versions.items() if not version[0].isdigit()]:
        raise ValueError(f"{package}: expected exact versions, found {', '.join(inexact)}")
    for script in sorted((HERE / "node").glob("*.mjs")):
        text = script.read_text()
        imported = {name: version for name, version in versions.items() if f'"{name}' in text}
        clients.append(Client(f"{script.stem}-npm", script, package, imported))
    return clients


def chosen(names: tuple[str, ...]) -> list[Client]:
    """Return the named clients, all if none is named. Raises ValueError for a name of none."""
    clients = all_clients()
    known = {client.name for client in clients}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"clients: expected some of {', '.join(sorted(known))}, found {', '.join(unknown)}")
    return [client for client in clients if not names or client.name in names]


def pinned(requirements: Path) -> dict[str, str]:
    """Return the version of each package of a requirements file. Raises ValueError for one without."""
    versions = {}
    for line in requirements.read_text().splitlines():
        requirement = line.partition("#")[0].strip()
        if not requirement:
            continue
        found = PINNED.fullmatch(requirement)
        if found is None:
            raise ValueError(f"{requirements}: expected name==version, found {requirement}")
        versions[found["name"]] = found["version"]
    return versions
