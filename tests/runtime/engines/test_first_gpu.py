"""What tools.first_gpu measures of an engine, on fakes of TensorRT's libraries and of CUDA."""

import json

import numpy as np
import pytest

from ernie_export.common.manifest import Manifest
from ernie_export.exporter.plan.roofline import Rate
from ernie_export.runtime.engines.device.memory import CudaMemory
from ernie_export.runtime.engines.tensorrt.engine import TensorRTEngine
from ernie_export.runtime.logits import DenseLogits
from tests.fakes.engine import FakeEngine
from tools.first_gpu.measure import STEPS, Meter, decode_rows, prefill_rows
from tools.first_gpu.session import StepFailed
from tools.first_gpu.steps import judge_prefill

LENGTHS = [1, 2, 63, 64, 65, 130]


class Lost:
    """Memory in use, of which every look finds this much more than the one before."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.looks = 0

    def __call__(self) -> int:
        self.looks += 1
        return self.looks * self.nbytes


def prefill(engine: TensorRTEngine, nbytes: int = 0) -> dict:
    return json.loads(json.dumps(prefill_rows(engine, 128, 400, Lost(nbytes), LENGTHS)))


@pytest.mark.parametrize("engine", ["trt", "trt-rtx"], indirect=True)
def test_prefill_is_timed_for_every_length(engine):
    data = prefill(engine)
    assert [int(length) for length in data["seconds"]] == LENGTHS and min(data["seconds"].values()) > 0
    assert (data["growth"], data["finite"], data["largest_difference"], data["shape_changes"]) == (0, True, 0, 0)
    found = judge_prefill(data)
    assert found.detail.startswith("130 tokens in ") and found.data is data


def test_memory_that_is_lost_fails_the_step(engine):
    with pytest.raises(StepFailed, match=r"a second round of the same prompts took 20.0 MiB"):
        judge_prefill(prefill(engine, 20 * 2**20))


def test_a_context_that_changes_its_shapes_fails_the_step(engine):
    """One length is run in the context of another, as an engine without padding would."""
    engine._prefill_contexts[128] = engine._prefill_contexts[64]
    with pytest.raises(StepFailed, match="shapes of a context changed"):
        judge_prefill(prefill(engine))


def test_logits_that_are_not_finite_fail_the_step(engine):
    data = prefill(engine) | {"finite": False}
    with pytest.raises(StepFailed, match="logits are not finite"):
        judge_prefill(data)


class OverflowingEngine(FakeEngine):
    """An engine whose logits overflow."""

    def logits(self) -> DenseLogits:
        return DenseLogits(np.full(self.vocabulary, np.inf, np.float32))


@pytest.mark.parametrize(("kind", "finite"), [(FakeEngine, True), (OverflowingEngine, False)])
def test_logits_that_are_not_finite_are_noticed(kind, finite):
    engine = kind(vocabulary=400, hidden=128, end=0)
    assert prefill_rows(engine, 128, 400, Lost(0), [1])["finite"] is finite


def test_decode_is_timed_by_numbers_of_sequences(engine):
    def rate_of(count: int) -> dict[str, Rate]:
        return {"measured": Rate(0.0, 1000.0 * count, 0.001, None), "h100": Rate(0.0, 1000.0 * count, None, None)}

    rows = decode_rows(engine, 100, [1, 2, 3], rate_of)
    assert [row["sequences"] for row in rows] == [1, 2, 3]
    assert [row["bytes"] for row in rows] == [1000, 2000, 3000]
    assert all(0 < row["seconds"] <= row["slowest"] for row in rows)
    assert rows[0]["roof_seconds"] == {"measured": 0.001, "h100": None}
    assert engine.shape_changes == 0 and STEPS > 10


def test_the_meter_reads_the_gpus_memory(fake_cuda, bundles):
    gpu = CudaMemory(fake_cuda(free=2**33))
    meter = Meter(gpu, lambda: gpu.available()[1] - gpu.available()[0])
    assert meter.used() == 2**33 and meter.bandwidth(2**20) > 0
    gpu.close()
    assert Manifest.read(bundles["trt"]).engines is not None
