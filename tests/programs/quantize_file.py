"""Quantize a checkpoint's float32 tensor x (8192 x 4096) to int4; print by how many MiB the peak of memory grew."""

import sys
from pathlib import Path

import numpy as np

from ernie_export.exporter.weights.writer import plan, write
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.weight_spec import Quantization, Rows, ScalesOf, Weight


def peak() -> int:
    """Return the most memory that this process has held, in MiB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024


folder = Path(sys.argv[1])
qweight = Weight("x", np.dtype(np.uint8), (8192, 2048), (Rows("x"),), Quantization(4, 128))
scales = Weight("s", np.dtype(np.float32), (8192, 32), (ScalesOf("x"),))
layout = plan([qweight, scales])
checkpoint = Checkpoint.open(folder)
before = peak()
write(layout, checkpoint, folder / "out", lambda count: None)
print(peak() - before)
