"""llama.cpp gets the text part of a checkpoint, whole; where it is built, it answers as this runtime does."""

from dataclasses import replace

import click
import compare
import contestants
import llama_build
import make_gguf
import numpy as np
import pytest

from ernie_export.exporter.export import export
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.state_dict import expected_tensors
from tests.paths import MINI
from tests.progress import QUIET

VISION = ("vision_model", "resampler_model", "gate.weight_1")


@pytest.fixture
def config():
    return ErnieConfig.from_hf(MINI)


def test_every_tensor_of_the_text_part_is_there_once(config):
    """Names by the checkpoint: all but those of vision encoder, resampler and vision experts."""
    text_experts = config.text.num_experts
    wanted = {
        name
        for name in expected_tensors(config)
        if not any(part in name for part in VISION)
        and not (".experts." in name and int(name.split(".experts.")[1].split(".")[0]) >= text_experts)
    }
    found = [name for _, tensor in make_gguf.tensors(config) for name in tensor.names]
    assert sorted(found) == sorted(wanted)


def test_values_come_from_the_checkpoint_in_the_axes_of_gguf(config):
    checkpoint = Checkpoint.open(MINI)
    tensors = dict(make_gguf.tensors(config))

    def stored(name):
        return checkpoint.read_rows(name, 0, checkpoint.tensors[name].shape[0]).astype(np.float32)

    mlp = "model.layers.1.mlp"
    experts = tensors["blk.1.ffn_down_exps.weight"].read(checkpoint)
    assert experts.shape == (8, 128, 96) and experts.dtype == np.float16
    np.testing.assert_array_equal(experts[5], stored(f"{mlp}.experts.5.down_proj.weight").astype(np.float16))
    router = tensors["blk.1.ffn_gate_inp.weight"].read(checkpoint)
    assert router.dtype == np.float32
    np.testing.assert_array_equal(router, stored(f"{mlp}.gate.weight").T)
    bias = tensors["blk.1.exp_probs_b.bias"].read(checkpoint)
    np.testing.assert_array_equal(bias, stored(f"{mlp}.moe_statics.e_score_correction_bias")[0])
    for name, tensor in tensors.items():
        assert tensor.read(checkpoint).shape == tensor.shape, name


def test_a_layout_that_llama_cpp_has_not_is_refused(config):
    layers = ("sparse", "dense", "sparse", "sparse")
    config = replace(config, text=replace(config.text, layer_types=layers))
    with pytest.raises(click.ClickException, match="dense layers first"):
        make_gguf.metadata(config)


def test_the_file_reads_back(config, tmp_path):
    gguf = pytest.importorskip("gguf", reason="needs the package gguf, which comes with llama.cpp")
    path = tmp_path / "F16.gguf"
    make_gguf.write(path, MINI, config)
    reader = gguf.GGUFReader(path)
    found = {tensor.name: tuple(map(int, tensor.shape[::-1])) for tensor in reader.tensors}
    assert found == {name: tensor.shape for name, tensor in make_gguf.tensors(config)}
    assert reader.fields["general.architecture"].contents() == "ernie4_5-moe"
    assert reader.fields["ernie4_5-moe.expert_count"].contents() == config.text.num_experts


def test_llama_cpp_answers_as_this_runtime_does(config, tmp_path):
    """In float16, several sequences at once: the same greedy tokens."""
    pytest.importorskip("llama_cpp", reason="needs llama.cpp (python benchmarks/make_gguf.py builds it)")
    path = tmp_path / "F16.gguf"
    make_gguf.write(path, MINI, config)
    export(MINI, tmp_path / "bundle", "onnx", "fp32", QUIET)
    ours = contestants.Ours(tmp_path / "bundle")
    theirs = contestants.make({"kind": "LlamaCpp", "gguf": str(path), "threads": 2, "repacked": True})
    prompts = contestants.prompts_of(compare.prefill(40, sequences=3), ours.ids)
    answers = []
    theirs.prefill(prompts, max_new_tokens=8)
    answers.append(theirs.tokens[:, 0])
    ours.prefill(prompts, max_new_tokens=8)
    for _ in range(5):
        theirs.decode(1)
        answers.append(theirs.tokens[:, 0])
        ours.decode(1)
    assert np.array(answers).T.tolist() == [sequence.tokens for sequence in ours.sequences]
    with pytest.raises(NotImplementedError):
        theirs.prefill([contestants.prompt(8, (4, 6), ours.ids)], max_new_tokens=8)


def test_an_llama_cpp_that_is_built_is_not_built_again(tmp_path):
    (tmp_path / "llama_cpp").mkdir()
    llama_build.build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["llama_cpp"]
