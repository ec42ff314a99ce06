"""Import this before transformers: where torchvision lacks its compiled operators, they are declared first."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "parity"))

import torchvision_standin

torchvision_standin.install()
