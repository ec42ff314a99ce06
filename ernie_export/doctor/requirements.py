"""The packages that this package and its extras require, compared with what is installed."""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from platform import machine

DISTRIBUTION = "ernie-export"
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<extras>[^\]]*)\])?(?P<bounds>[^;]*)(?:;(?P<marker>.*))?")
_BOUND = re.compile(r"(>=|<=|==|!=|<|>)\s*([\d.]+)")
_STANDS_FOR = {"onnxruntime": "onnxruntime-gpu"}  # the same modules, built for GPUs
PLATFORM = {"sys_platform": sys.platform, "platform_machine": machine()}


@dataclass(frozen=True)
class Requirement:
    """A package that something here needs.

    Attributes:
        name: Its distribution.
        bounds: Versions that are accepted, such as ">=1.20".
        installed: The installed version; None if there is none.
    """

    name: str
    bounds: str
    installed: str | None

    @property
    def is_met(self) -> bool:
        """Whether a version within the bounds is installed."""
        if self.installed is None:
            return False
        found = release(self.installed)
        return all(_compare(found, operator, release(bound)) for operator, bound in _BOUND.findall(self.bounds))

    def __str__(self) -> str:
        return f"{self.name} {self.bounds} (found {self.installed or 'none'})"


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version that begin it, without trailing zeros: 1.20.0rc1 is (1, 20)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _compare(found: tuple[int, ...], operator: str, bound: tuple[int, ...]) -> bool:
    results = {
        ">=": found >= bound,
        "<=": found <= bound,
        "==": found == bound,
        "!=": found != bound,
        "<": found < bound,
        ">": found > bound,
    }
    return results[operator]


def read_requirements(extra: str = "", platform: Mapping[str, str] = PLATFORM) -> list[Requirement]:
    """Return what an extra requires on a platform; what the package itself requires for no extra.

    Raises importlib.metadata.PackageNotFoundError if the package is not installed.
    """
    requirements = []
    for text in metadata.requires(DISTRIBUTION) or ():
        match = _REQUIREMENT.match(text)
        if match is None or not _applies(match["marker"] or "", extra, platform):
            continue
        if normalized(match["name"]) == DISTRIBUTION:
            for other in (match["extras"] or "").split(","):
                requirements += read_requirements(other.strip(), platform)
        else:
            name = normalized(match["name"])
            bounds = match["bounds"].strip(" ()").replace(" ", "")
            requirements.append(Requirement(name, bounds, installed_version(name)))
    return requirements


def normalized(name: str) -> str:
    """Return a distribution's name in the form in which two forms of it are equal."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_version(name: str, find_version: Callable[[str], str] = metadata.version) -> str | None:
    """Return the installed version of a distribution, or of the one that stands for it; None if there is none."""
    for candidate in (name, _STANDS_FOR.get(name)):
        if candidate is not None:
            try:
                return find_version(candidate)
            except metadata.PackageNotFoundError:
                continue
    return None


def _applies(marker: str, extra: str, platform: Mapping[str, str]) -> bool:
    """Return whether a requirement's marker holds for an extra on a platform."""
    wanted = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", marker)
    if (normalized(wanted[1]) if wanted else "") != normalized(extra):
        return False
    conditions = re.findall(r"(sys_platform|platform_machine)\s*==\s*['\"](\w+)['\"]", marker)
    return all(platform[name] == value for name, value in conditions)
