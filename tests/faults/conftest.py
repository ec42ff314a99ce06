"""The fuzzer is a folder of scripts beside one another, not a package: make them importable by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "fuzz"))
