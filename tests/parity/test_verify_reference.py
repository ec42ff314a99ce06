"""The reference of ernie-verify computes as the transformers class does, whether its weights fit into memory or not."""

import numpy as np
import pytest
import torch
from transformers import Ernie4_5_VLMoeForConditionalGeneration

from ernie_export.common.manifest import Manifest
from ernie_export.exporter.export import export
from ernie_export.exporter.verify.bundle_tensors import BundleTensors
from ernie_export.exporter.verify.conversations import example_conversations
from ernie_export.exporter.verify.reference_weights import CheckpointTensors
from ernie_export.exporter.verify.torch_side import Reference
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.runtime.preprocess import Preprocessor
from tests.paths import MINI
from tests.progress import QUIET

# Largest error, by the largest value of the tensor; the checkpoint has bfloat16, of which float16 rounds few values.
# Of the largest value; fp16 has steps of 2^-24 near 0, where small bf16 values lose their last bits.
ROUNDINGS = {"fp32": 0.0, "fp16": 2e-6, "int8": 1.2e-2, "int4": 0.2}


def reference(resident: bool) -> Reference:
    return Reference(MINI, CheckpointTensors(Checkpoint.open(MINI)), resident)


def test_every_parameter_and_buffer_is_what_transformers_loads():
    expected = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(
        MINI, dtype=torch.float32, experts_implementation="eager"
    )
    found = reference(resident=True).model
    names = [name for name, _ in expected.named_parameters()]
    assert names == [name for name, _ in found.named_parameters() if name != "lm_head.weight"] and len(names) > 100
    for name, tensor in [*expected.named_parameters(), *expected.named_buffers()]:
        value = dict([*found.named_parameters(), *found.named_buffers()])[name]
        assert torch.equal(tensor, value), name
    assert torch.equal(found.lm_head.weight, expected.lm_head.weight)
    assert found.generation_config.to_dict() == expected.generation_config.to_dict()


def test_layers_that_are_read_one_by_one_compute_the_same():
    preprocessor = Preprocessor.from_folder(MINI)
    prompts = {name: preprocessor.prepare(messages).arrays for name, messages in example_conversations().items()}
    answers = {name: [5, 6, 7, 8] for name in prompts}
    streamed = reference(resident=False)
    expected = reference(resident=True).run(prompts, answers)
    for _ in range(2):  # and again, from the first layer on
        found = streamed.run(prompts, answers)
        assert list(found) == list(expected)
        for name, run in expected.items():
            assert np.array_equal(found[name].logits, run.logits)
            assert found[name].probes.keys() == run.probes.keys()
            assert all(np.array_equal(found[name].probes[probe], value) for probe, value in run.probes.items())
    layers = streamed.model.model.language_model.layers
    assert {parameter.device.type for layer in layers for parameter in layer.parameters()} == {"meta"}
    assert streamed.answer(prompts["text"], 8) == reference(resident=True).answer(prompts["text"], 8)


def test_a_conversation_that_fails_ends_all():
    preprocessor = Preprocessor.from_folder(MINI)
    prompts = {name: preprocessor.prepare(messages).arrays for name, messages in example_conversations().items()}
    prompts["text"]["input_ids"] = prompts["text"]["input_ids"] + 10**6  # no such tokens
    with pytest.raises(IndexError, match="index out of range"):
        reference(resident=False).run(prompts, {name: [5, 6] for name in prompts})


@pytest.mark.parametrize("precision", ROUNDINGS)
def test_a_bundles_weights_are_read_as_it_rounds_them(tmp_path, precision):
    export(MINI, tmp_path / "bundle", "onnx", precision, QUIET)
    checkpoint = Checkpoint.open(MINI)
    expected = CheckpointTensors(checkpoint)
    found = BundleTensors(tmp_path / "bundle", Manifest.read(tmp_path / "bundle"), MINI)
    errors = {
        name: float(np.abs(found.read(name) - expected.read(name)).max() / np.abs(expected.read(name)).max())
        for name in checkpoint.tensors
    }
    head = np.abs(found.read_head() - expected.read_head()).max() / np.abs(expected.read_head()).max()
    assert max(*errors.values(), head) <= ROUNDINGS[precision]
    assert (max(errors.values()) > 0) == (precision != "fp32")
    if precision == "int4":
        assert 0 < head < 1.2e-2 and errors["model.embed_tokens.weight"] == 0  # the tied head alone has 8 bits
