"""A one-operator model, run by ONNX Runtime or by the ONNX project's own evaluator."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from ernie_export.exporter.targets.onnx import FUSED_BODIES, FUSED_BODIES_WITHOUT_MINIMUM, PORTABLE_BODIES
from ernie_export.exporter.targets.trt_rtx import RTX_BODIES
from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.ops.bodies import OpBodies

Run = Callable[..., list[np.ndarray]]
BODIES = {bodies.name: bodies for bodies in (FUSED_BODIES, FUSED_BODIES_WITHOUT_MINIMUM, PORTABLE_BODIES, RTX_BODIES)}


@pytest.fixture
def run_op(tmp_path: Path) -> Run:
    """run_op(op_type, lowering, inputs, attributes, outputs): `outputs` are (dtype, rank) of each.

    `constants` are the inputs that stand in the model, as weights do: ONNX Runtime packs those for its kernels.
    """

    def run(
        op_type: str,
        lowering: str | OpBodies,
        inputs: dict[str, np.ndarray],
        attributes: dict[str, object],
        outputs: list[tuple[type, int]],
        evaluator: str = "onnxruntime",
        constants: tuple[str, ...] = (),
    ) -> list[np.ndarray]:
        declared = [
            (name, ir.DataType.from_numpy(a.dtype), [f"{name}_{axis}" for axis in range(a.ndim)])
            for name, a in inputs.items()
            if name not in constants
        ]
        half = (ir.DataType.FLOAT16 for _, kind, _ in declared if kind == ir.DataType.FLOAT16)
        g = GraphBuilder("one", next(half, ir.DataType.FLOAT), declared)
        values = [g.constant(n, a) if n in constants else g.inputs[n] for n, a in inputs.items()]
        inputs = {name: a for name, a in inputs.items() if name not in constants}
        for index, value in enumerate(g.custom(op_type, *values, **attributes)):
            dtype, rank = outputs[index]
            shape = [f"out{index}_{axis}" for axis in range(rank)]
            g.output(value, f"out{index}", ir.DataType.from_numpy(np.dtype(dtype)), shape)
        path = tmp_path / "one.onnx"
        g.save(path, BODIES[lowering] if isinstance(lowering, str) else lowering, "weights", {})
        if evaluator == "onnx":
            found = ReferenceEvaluator(onnx.load(path)).run(None, inputs)
            assert isinstance(found, list)
            return found
        options = ort.SessionOptions()
        options.log_severity_level = 3
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, inputs)

    return run
