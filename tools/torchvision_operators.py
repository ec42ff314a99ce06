"""Import this before transformers, so that torchvision 0.28.0 imports beside a CPU-only torch.

`make test` installs torchvision with `--no-deps` into a folder of its own, .venv/torchvision, which is put on the path
here. Its wheel carries operators built against another torch, so loading them fails quietly and `import torchvision`
then stops at `register_fake("torchvision::nms")`: no such operator exists. The reference processor never calls the
operators: it needs only `transforms`. Declaring them by name is enough.
"""

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(sys.prefix) / "torchvision"))
LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # its declarations disappear with it
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
