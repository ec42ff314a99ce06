"""Describe the machine that a measurement runs on: processor, memory, load, versions."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version

from ernie_export.common.processor import cpu_name, usable_cores

PACKAGES = ("ernie-export", "onnxruntime", "numpy")
BUSY = 0.5  # running processes a core, before a measurement, from which it shares the machine


@dataclass(frozen=True)
class Machine:
    """The machine that a measurement runs on.

    Attributes:
        cpu: Name of the processor.
        cores: Cores that this process may use.
        memory: Bytes.
        system: Operating system and its release.
        load_average: Running processes, averaged over the last minute before the run.
        versions: Version of Python and of each of PACKAGES.
    """

    cpu: str
    cores: int
    memory: int
    system: str
    load_average: float
    versions: dict[str, str]

    @classmethod
    def here(cls) -> "Machine":
        """Describe this machine as it is now."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
        system = f"{platform.system()} {platform.release()}"
        return cls(cpu_name(), usable_cores(), memory, system, os.getloadavg()[0], versions)

    @property
    def busy(self) -> bool:
        """Whether other work may have slowed the measurement."""
        return self.load_average > BUSY * self.cores
