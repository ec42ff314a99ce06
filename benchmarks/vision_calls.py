"""Unequal images: one encoder call for each size, or all in one ragged call?  Time and peak memory of the attention.

    python benchmarks/vision_calls.py

Contestants are one layer's attention at the released width (16 heads × 80): a call for each image with no mask, as the
exported graphs do it, and one call over all images' patches with a mask of patches × patches that keeps them apart, the
only ragged form that ONNX Runtime's CPU operators take. Each runs in a process of its own, since peak memory never
falls; they take turns.
"""

import json
import resource
import subprocess
import sys
import time

import click
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

HEADS = 16
HEAD_DIM = 80
CASES = {  # patches of each image
    "4 of 1024": [1024] * 4,
    "256, 1024, 2304": [256, 1024, 2304],
}


def session(masked: bool) -> ort.InferenceSession:
    """One com.microsoft::MultiHeadAttention node, with or without an additive mask."""
    width = HEADS * HEAD_DIM
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, "p", width]) for n in "qkv"]
    names = ["q", "k", "v"]
    if masked:
        inputs.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 1, "p", "p"]))
        names += ["", "", "mask"]
    node = helper.make_node("MultiHeadAttention", names, ["y"], domain="com.microsoft", num_heads=HEADS)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "p", width])
    graph = helper.make_graph([node], "attention", inputs, [output])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def measure(ragged: bool, patches: list[int]) -> dict[str, float]:
    """Best seconds of three runs and peak memory in MiB above the loaded process."""
    rng = np.random.default_rng(0)
    attention = session(masked=ragged)
    images = [[rng.standard_normal((1, n, HEADS * HEAD_DIM), np.float32) for _ in "qkv"] for n in patches]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        if ragged:
            owner = np.repeat(np.arange(len(patches)), patches)
            mask = np.where(owner[:, None] == owner, np.float32(0), np.float32(-1e30))[None, None]
            q, k, v = (np.concatenate([image[i] for image in images], axis=1) for i in range(3))
            attention.run(None, {"q": q, "k": k, "v": v, "mask": mask})
        else:
            for q, k, v in images:
                attention.run(None, {"q": q, "k": k, "v": v})
        best = min(best, time.perf_counter() - started)
    return {"seconds": best, "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


@click.command()
@click.option("--one", help="Internal: measure one contestant and print JSON.")
def main(one: str | None) -> None:
    """Compare both ways on a few sets of images."""
    if one:
        task = json.loads(one)
        print(json.dumps(measure(task["ragged"], task["patches"])))
        return
    table = Table(title="attention of one layer, fp32: seconds and MiB on top")
    for column in ("images (patches)", "call for each, s", "MiB", "one ragged call, s", "MiB"):
        table.add_column(column, justify="right")
    for name, patches in CASES.items():
        found = []
        for ragged in (False, True):
            task = json.dumps({"ragged": ragged, "patches": patches})
            done = subprocess.run([sys.executable, __file__, "--one", task], capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout))
        cells = [cell for f in found for cell in (f"{f['seconds']:.3f}", f"{f['mib']:.0f}")]
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
