"""Quantized weights through the TensorRT engine: bound in words of 32 bits, and read by the plugins' bodies.

The graphs are those for TensorRT, each plugin by the ONNX function that its declaration says; kernels are not run.
"""

from dataclasses import replace
from typing import Any

import onnx
import pytest

from ernie_export.common.manifest import Manifest
from ernie_export.exporter.export import export
from ernie_export.exporter.targets.tensorrt import DECODE_BODIES, TENSORRT_BODIES
from ernie_export.graphs.precision import TENSORRT
from ernie_export.runtime import load
from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.preprocess import Preprocessor
from ernie_export.runtime.scheduler_config import SchedulerConfig
from tests.fakes import plugin_bodies
from tests.fakes.tensorrt_runtime import write_bundle
from tests.paths import MINI
from tests.progress import QUIET

PICTURE = {"type": "image", "path": str(MINI.parent / "media" / "shapes.png")}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "How many sides has a triangle?"}],
    [{"role": "user", "content": [PICTURE, {"type": "text", "text": "What is in the picture?"}]}],
]


@pytest.mark.parametrize("name", ["int4", "fp8"])
def test_answers_are_those_of_the_same_quantized_weights_in_standard_operators(name, opened, tmp_path):
    in_float = replace(TENSORRT[name], float_type="float32")
    export(MINI, tmp_path / "portable", "onnx-portable", in_float, QUIET)
    with load(tmp_path / "portable", threads=1) as model:
        expected = [result.tokens for result in model.generate(CONVERSATIONS, max_new_tokens=12, min_new_tokens=4)]

    def filled(graph: bytes) -> bytes:
        loaded = onnx.load_from_string(graph)
        plugin_bodies.fill(loaded)
        return loaded.SerializeToString()

    folder = tmp_path / "engines"
    write_bundle(folder, in_float, filled, TENSORRT_BODIES, decode_bodies=DECODE_BODIES)
    engine, cuda = opened(folder)
    with engine:
        model = Model(Manifest.read(folder), Preprocessor.from_folder(folder), engine, SchedulerConfig(max_num_seqs=3))
        results = model.generate(CONVERSATIONS, max_new_tokens=12, min_new_tokens=4)
        assert [result.tokens for result in results] == expected
        del model
    assert [result.text for result in results][0].startswith("three")
    assert not cuda.memory._blocks
