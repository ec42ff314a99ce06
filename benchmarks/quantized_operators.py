"""Experts and linear layers at each width of weights on the CPU: what decode and prefill get of the machine.

    python benchmarks/quantized_operators.py [EXPERTS]

The released widths, with EXPERTS (default 16) instead of 64 experts; random weights, each token choosing anew. The
contestants take turns, and the best of their turns counts. `accuracy level 0` and `a scale a row` are what the exporter
does not use, and why.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

HIDDEN = 2560
WIDTH = 1536
K = 6
TOKENS = 512
TURNS = {1: 12, TOKENS: 3}
TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8}


@dataclass(frozen=True)
class Contestant:
    """One way to store weights; `group` 0 is a scale a row."""

    name: str
    bits: int
    group: int = 0
    accuracy: int = 4


CONTESTANTS = (
    Contestant("float32", 32),
    Contestant("8 bits, groups of 128", 8, 128),
    Contestant("8 bits, groups of 32", 8, 32),
    Contestant("4 bits, groups of 128", 4, 128),
    Contestant("4 bits, groups of 32", 4, 32),
    Contestant("4 bits, groups of 128, accuracy level 0", 4, 128, 0),
    Contestant("4 bits, a scale a row", 4),
)


@dataclass
class Running:
    """A session that holds a contestant's operator, and what was found."""

    contestant: Contestant
    session: ort.InferenceSession
    weight_bytes: int
    load: float
    best: dict[int, float]


def open_operator(contestant: Contestant, folder: Path, experts: int) -> Running:
    """com.microsoft's MoE or QMoE over a data file of random weights, which is mapped."""
    bits = contestant.bits
    group = contestant.group
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for name, rows, columns in (("fc1", 2 * WIDTH, HIDDEN), ("fc2", HIDDEN, WIDTH)):
        if bits == 32:
            arrays[name] = rng.random((experts, rows, columns), np.float32) - np.float32(0.5)
        else:
            arrays[name] = rng.integers(0, 256, (experts, rows, columns * bits // 8), np.uint8)
            groups = (columns // group,) if group else ()
            arrays[f"{name}_scales"] = rng.random((experts, rows, *groups), np.float32) / 50
    names = (
        ["x", "router", "fc1", "", "fc2"]
        if bits == 32
        else ["x", "router", "fc1", "fc1_scales", "", "fc2", "fc2_scales"]
    )
    attributes = {
        "k": K,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
    }
    if bits < 32:
        attributes |= {"expert_weight_bits": bits, "accuracy_level": contestant.accuracy}
    if group:
        attributes["block_size"] = group
    node = helper.make_node("MoE" if bits == 32 else "QMoE", names, ["y"], domain="com.microsoft", **attributes)
    held = []
    end = 0
    with (folder / "data").open("wb") as file:
        for name, array in arrays.items():
            tensor = onnx.TensorProto(name=name, data_type=TYPES[array.dtype], dims=array.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "data"), ("offset", end), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            held.append(tensor)
            file.write(array.tobytes())
            end += array.nbytes
    x, router, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["T", width])
        for name, width in (("x", HIDDEN), ("router", experts), ("y", HIDDEN))
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "one", [x, router], [y], held), opset_imports=opsets, ir_version=10
    )
    onnx.save_model(model, folder / "model.onnx")
    del arrays
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.force_spinning_stop", "1")  # other sessions' turns would share cores
    started = time.perf_counter()
    session = ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return Running(contestant, session, end, time.perf_counter() - started, {})


def main(experts: int) -> None:
    """Measure in turns and print."""
    rng = np.random.default_rng(1)
    with TemporaryDirectory() as folder:
        running = []
        for index, contestant in enumerate(CONTESTANTS):
            (own := Path(folder) / str(index)).mkdir()
            running.append(open_operator(contestant, own, experts))
        for tokens, turns in TURNS.items():
            x = rng.standard_normal((tokens, HIDDEN), np.float32)
            for _ in range(turns):
                router = rng.standard_normal((tokens, experts), np.float32)
                for one in running:
                    started = time.perf_counter()
                    one.session.run(None, {"x": x, "router": router})
                    seconds = time.perf_counter() - started
                    one.best[tokens] = min(seconds, one.best.get(tokens, seconds))
    title = f"ONNX Runtime {ort.__version__}, two threads: {experts} experts, 1 and {TOKENS} tokens"
    table = Table("experts", "MiB", "load s", "1: ms", "GB/s", f"{TOKENS}: ms", "GFLOP/s", title=title)
    for one in running:
        read = one.weight_bytes * K / experts / one.best[1] / 1e9
        work = 2 * 3 * HIDDEN * WIDTH * K * TOKENS / one.best[TOKENS] / 1e9
        times = f"{1e3 * one.best[1]:.2f}", f"{read:.1f}", f"{1e3 * one.best[TOKENS]:.0f}", f"{work:.0f}"
        size = f"{one.weight_bytes / 2**20:.0f}", f"{one.load:.2f}"
        table.add_row(one.contestant.name, *size, *times)
    Console(width=100).print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 16)
