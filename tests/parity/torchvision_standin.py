"""Let torchvision 0.28.0 import beside a CPU-only torch, where its compiled operators are missing.

`make test` installs torchvision with `--no-deps` into a folder of its own, .venv/torchvision, which is put on the path
here. Its wheel carries operators built against another torch, so loading them fails quietly and `import torchvision`
then stops at `register_fake("torchvision::nms")`: no such operator exists.
The reference processor never calls the operators: it needs only `transforms`. Declaring them by name is enough.
"""

import sys
from pathlib import Path

import torch

# The library object must stay alive: its declarations disappear with it.
_LIBRARIES: list[torch.library.Library] = []


def install() -> None:
    """Declare the operators that torchvision registers shapes for; call before the first `import torchvision`.

    Calling it twice, or where the real operators exist, changes nothing.
    """
    if _LIBRARIES:
        return
    sys.path.append(str(Path(sys.prefix) / "torchvision"))
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)
