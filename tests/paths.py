"""Where tests find the repository, its example checkpoint and what `make test` installs apart from the environment."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / "tests" / "programs"  # run by tests in processes of their own
MINI = ROOT / "examples" / "mini-ernie"
MEDIA = ROOT / "examples" / "media"
PROGRAMS = ROOT / "tests" / "programs"


def tensorrt_api() -> Path:
    """Return the folder with TensorRT's Python API, or fail where it is not installed."""
    folder = Path(sys.prefix, "tensorrt_api")
    assert folder.is_dir(), f"{folder} is missing: python tools/tensorrt_api.py {folder}, which `make test` runs"
    return folder
