"""Loads of a graph by each way of packing are of the right graph, of every round, and map what was saved."""

import json

import onnx
import packing
import pytest
from click.testing import CliRunner


@pytest.fixture(scope="module")
def bundle(bundle_of):
    return bundle_of("onnx", "int4")


def test_every_way_loads_in_every_round(bundle, tmp_path):
    output = tmp_path / "packing.json"
    result = CliRunner().invoke(packing.main, [str(bundle), "--rounds", "1", "--output", str(output)])
    assert result.exit_code == 0, result.output
    figures = json.loads(output.read_text())
    assert set(figures["loads"]) == {"decoder", "decode"}
    assert list(figures["loads"]["decode"]) == [*packing.WAYS, "all threads, packed weights saved"]
    loads = [one for by_way in figures["loads"].values() for several in by_way.values() for one in several]
    assert len(loads) == 7 and all(0 < one["seconds"] < 60 for one in loads)
    assert figures["machine"]["load"] >= 0 and figures["bundle_bytes"] > 2**20


def test_packed_weights_are_saved_beside_the_graph(bundle, tmp_path):
    saved = packing.save_packed(bundle / "decode.onnx", tmp_path)
    tensors = onnx.load(saved, load_external_data=False).graph.initializer
    entries = [entry for tensor in tensors for entry in tensor.external_data]
    assert {entry.value for entry in entries if entry.key == "location"} == {"decode.data"}
    assert any(entry.key.startswith("prepacked") for entry in entries)
    assert (tmp_path / "decode.data").stat().st_size > 2**20
