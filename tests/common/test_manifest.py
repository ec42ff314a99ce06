"""manifest.json: written and read back; whatever else stands in it is refused in one line."""

import json
from dataclasses import asdict, fields, replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import GRAPHS, NAME, SCHEMA, Manifest, sha256
from ernie_export.common.manifest_sections import (
    CalibrationInfo,
    EngineInfo,
    FileEntry,
    ModelInfo,
    TensorRTInfo,
    WeightBinding,
)

NUMBERS: dict[str, Any] = {field.name: 4 for field in fields(ModelInfo)}
INFO = ModelInfo(**NUMBERS | {"eos_token_ids": (2,)})
TENSORRT = TensorRTInfo("H100", "ampere-plus", True, ("sm80", "sm90"), "3f2a", 4)
ENGINES = EngineInfo("tensorrt", "11.4", ("9.0",), 2, 64, 16, 32, 8, TENSORRT, WeightBinding(True, ("norm", "bias")))
FUZZED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def manifest(folder: Path) -> Manifest:
    """The manifest of four files, which are written into `folder`."""
    for name in GRAPHS:
        (folder / f"{name}.onnx").write_text(name)
    files = {f"{name}.onnx": FileEntry(len(name), sha256(folder / f"{name}.onnx")) for name in GRAPHS}
    graphs = {name: f"{name}.onnx" for name in GRAPHS}
    return Manifest("onnx", "fp32", ("cpu",), "decode", INFO, graphs, files)


def document(folder: Path) -> dict[str, Any]:
    """The same as JSON, written."""
    manifest(folder).write(folder)
    return json.loads((folder / NAME).read_text())


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        Manifest.read(folder).check_files(folder, hash_limit=2**40)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_read_gives_what_was_written(tmp_path):
    written = manifest(tmp_path)
    written.write(tmp_path)
    found = Manifest.read(tmp_path)
    assert found == written
    found.check_files(tmp_path, hash_limit=2**40)


def test_engines_are_read_as_written(tmp_path):
    for engines in (ENGINES, EngineInfo("tensorrt_rtx_bindings", "1.7", ("8.9", "12.0"), 1, 64, 16, 32, 0)):
        written = replace(manifest(tmp_path), engines=engines)
        written.write(tmp_path)
        assert Manifest.read(tmp_path) == written and not written.needs_engine_build
        assert replace(written, engines=replace(engines, version="")).needs_engine_build
    assert not manifest(tmp_path).needs_engine_build


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("library", 7),
        ("compute_capabilities", [9.0]),
        ("max_batch_size", 0),
        ("max_seq_len", "64"),
        ("prefill_chunk", 0),
        ("top_k", -1),
        ("tensorrt", []),
        ("weights", []),
        ("weights.bakes_projections", 1),
        ("weights.constants", "norm"),
        ("weights.constants", [1]),
        ("tensorrt.hardware_compatibility", "any"),
        ("tensorrt.version_compatible", 1),
        ("tensorrt.architectures", [90]),
        ("tensorrt.plugin_version", None),
        ("tensorrt.workspace_gib", -1),
        ("tensorrt.workspace_gib", True),
        ("tensorrt.surprise", 1),
        ("surprise", 1),
    ],
)
def test_a_wrong_value_of_engines_is_named(tmp_path, key, value):
    engines = asdict(ENGINES)
    *parents, last = key.split(".")
    reduce(getitem, parents, engines)[last] = value
    (tmp_path / NAME).write_text(json.dumps(document(tmp_path) | {"engines": engines}))
    assert refusal(tmp_path).startswith(f"{tmp_path / NAME}: engines.{key}: expected ")


def test_calibration_is_read_as_written(tmp_path):
    written = replace(manifest(tmp_path), calibration=CalibrationInfo("a" * 64, "b" * 64, 3, 120, {"x": (7, None)}))
    written.write(tmp_path)
    assert Manifest.read(tmp_path) == written
    wrong = (("sha256", 7), ("tokens", 0), ("conversations", True), ("tokens", "120"), ("surprise", 1))
    for key, value in (*wrong, ("checksums", {"x": [True]}), ("checksums", [1])):
        changed = json.loads((tmp_path / NAME).read_text())
        changed["calibration"][key] = value
        (tmp_path / NAME).write_text(json.dumps(changed))
        message = refusal(tmp_path)
        assert "calibration" in message or key in message
        written.write(tmp_path)


def test_a_newer_schema_is_distinguished_from_another(tmp_path):
    good = document(tmp_path)
    for schema, newer in ((SCHEMA + 1, True), (SCHEMA - 1, False), ("1", False), (None, False), (1.5, False)):
        (tmp_path / NAME).write_text(json.dumps(good | {"schema": schema}))
        message = refusal(tmp_path)
        assert f"expected schema {SCHEMA}, found schema " in message
        assert ("newer ernie-export" in message) == newer and ("export the checkpoint again" in message) != newer


def test_contents_are_hashed_up_to_the_limit(tmp_path):
    document(tmp_path)
    (tmp_path / "vision.onnx").write_text("Vision")
    Manifest.read(tmp_path).check_files(tmp_path, hash_limit=5)
    with pytest.raises(UserError, match="vision.onnx: expected sha256"):
        Manifest.read(tmp_path).check_files(tmp_path, hash_limit=6)


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("target",), 3, "target"),
        (("precision",), None, "precision"),
        (("model", "hidden_size"), "4", "model.hidden_size"),
        (("model", "hidden_size"), 0, "model.hidden_size"),
        (("model", "num_layers"), True, "model.num_layers"),
        (("model", "image_token_id"), -1, "model.image_token_id"),
        (("model", "eos_token_ids"), [1.5], "model.eos_token_ids"),
        (("model", "surprise"), 1, "surprise"),
        (("files", "../weights"), {"bytes": 1, "sha256": ""}, "../weights"),
        (("files", "/etc/passwd"), {"bytes": 1, "sha256": ""}, "/etc/passwd"),
        (("files", "a\nb"), {"bytes": 1, "sha256": ""}, r"a\nb"),
        (("files", "é" * 200), {"bytes": 1, "sha256": ""}, "files"),
        (("files", "vision.onnx", "bytes"), "6", "files.vision.onnx"),
        (("files", "vision.onnx"), {"bytes": 6}, "sha256"),
        (("graphs", "vision"), "other.onnx", "graphs.vision"),
        (("graphs",), {"vision": "vision.onnx"}, "graphs.resampler"),
        (("graphs",), [], "graphs: expected an object"),
        (("files",), None, "files: expected an object"),
        (("model",), [], "model: expected an object"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, place, value, named):
    changed = document(tmp_path)
    target = changed
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    (tmp_path / NAME).write_text(json.dumps(changed))
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / NAME}: ") and named in message


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b"null", b"[1]", b'"x"'])
def test_what_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    assert str(tmp_path / NAME) in refusal(tmp_path)


def test_a_folder_without_one_is_refused(tmp_path):
    assert f"found no {NAME}" in refusal(tmp_path)
    assert "found no folder" in refusal(tmp_path / "none")
    (tmp_path / NAME).mkdir()
    assert f"found no {NAME}" in refusal(tmp_path)


@FUZZED
@given(JSON)
def test_any_json_is_refused_in_one_line(tmp_path, value):
    (tmp_path / NAME).write_text(json.dumps(value))
    refusal(tmp_path)


@FUZZED
@given(st.binary(max_size=60))
def test_any_bytes_are_refused_in_one_line(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    refusal(tmp_path)


@FUZZED
@given(st.data())
def test_any_changed_value_is_read_or_refused_in_one_line(tmp_path, data):
    """One value anywhere in a good manifest is replaced, or a key added or dropped."""
    changed = target = document(tmp_path)
    while True:
        key = data.draw(st.sampled_from([*target, "new"]))
        inner = target.get(key)
        if isinstance(inner, dict) and data.draw(st.booleans()):
            target = inner
            continue
        if data.draw(st.booleans()):
            target[key] = data.draw(JSON)
        else:
            target.pop(key, None)
        break
    (tmp_path / NAME).write_text(json.dumps(changed))
    try:
        found = Manifest.read(tmp_path)
        found.check_files(tmp_path, hash_limit=2**40)
    except UserError as e:
        assert "\n" not in str(e) and str(tmp_path) in str(e)
    else:
        assert set(GRAPHS) <= set(found.graphs) and set(found.graphs.values()) <= set(found.files)


def test_a_manifest_without_weights_says_so(tmp_path):
    with pytest.raises(
        UserError, match=r"manifest.json: files: expected a file of weights \(.safetensors\), found none"
    ):
        assert manifest(tmp_path).data_file
