"""Where tests find the repository, its example checkpoint and what `make test` installs apart from the environment."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / "tests" / "programs"  # run by tests in processes of their own
MINI = ROOT / "examples" / "mini-ernie"
MEDIA = ROOT / "examples" / "media"
CASES = ROOT / "tests" / "cases"  # media as devices write them


def tensorrt_api(version: str = "") -> Path:
    """Return the folder with TensorRT's Python API, of the newest or of an older version; fail where there is none."""
    folder = Path(sys.prefix, f"tensorrt_api-{version}" if version else "tensorrt_api")
    command = f"python tools/tensorrt_api.py {folder} {version}".strip()
    assert folder.is_dir(), f"{folder} is missing: {command}, which `make test` runs"
    return folder
