"""The lazy reader: what it finds, and that every damaged checkpoint is refused in one line."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ernie_export.common.errors import UserError
from ernie_export.graphs.checkpoint.reader import INDEX, SINGLE, Checkpoint

ARRAYS: dict[str, np.ndarray] = {
    "a": np.arange(12, dtype=np.float32).reshape(4, 3),
    "b": np.linspace(-2, 2, 10, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(5, 2),
    "c": np.array([1.5, -2.25], np.float16),
    "empty": np.zeros((0, 3), np.float32),
    "ids": np.arange(3),
}


def save_raw(path: Path, members: dict[str, Any] | bytes, data: bytes = b"") -> None:
    """A safetensors file with a header of our choice."""
    header = members if isinstance(members, bytes) else json.dumps(members).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def member(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def save_sharded(folder: Path) -> None:
    """Two shards and their index."""
    save_file({"a": ARRAYS["a"]}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": ARRAYS["b"], "c": ARRAYS["c"]}, folder / "model-00002-of-00002.safetensors")
    files = {"a": "model-00001-of-00002.safetensors"} | dict.fromkeys("bc", "model-00002-of-00002.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 72}, "weight_map": files}))


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and "expected" in message and "found" in message
    return message


def test_reads_rows_of_every_dtype(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / SINGLE)
    checkpoint = Checkpoint.open(tmp_path)
    assert set(checkpoint.tensors) == set(ARRAYS)
    for name in "abc":
        expected = ARRAYS[name]
        entry = checkpoint.tensors[name]
        assert (entry.shape, entry.nbytes) == (expected.shape, expected.nbytes)
        stored = (tmp_path / SINGLE).read_bytes()[entry.offset : entry.offset + entry.nbytes]
        assert stored == expected.tobytes()
        for start, stop in ((0, len(expected)), (1, 2), (0, 0)):
            rows = checkpoint.read_rows(name, start, stop)
            assert rows.dtype == expected.dtype
            assert rows.shape == (stop - start, *expected.shape[1:])
            assert rows.tobytes() == expected[start:stop].tobytes()
    assert checkpoint.read_rows("empty", 0, 0).shape == (0, 3)
    with pytest.raises(ValueError, match="rows 2..5"):
        checkpoint.read_rows("a", 2, 5)


def test_reads_shards_through_links(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    folder = tmp_path / "snapshot"
    blobs.mkdir()
    folder.mkdir()
    save_sharded(blobs)
    for name in os.listdir(blobs):  # as a hub cache lays it out
        (folder / name).symlink_to(Path("..") / "blobs" / name)
    checkpoint = Checkpoint.open(folder)
    assert set(checkpoint.tensors) == set("abc")
    np.testing.assert_array_equal(checkpoint.read_rows("a", 1, 3), ARRAYS["a"][1:3])
    assert checkpoint.tensors["c"].file == folder / "model-00002-of-00002.safetensors"


def test_takes_the_encoders_names_of_the_released_repository(tmp_path: Path) -> None:
    save_file({"vision_model.ln.bias": np.arange(3, dtype=np.float32)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    checkpoint.require("model.vision_model.ln.bias", (3,))
    assert checkpoint.unused() == []
    assert checkpoint.read_rows("model.vision_model.ln.bias", 0, 3).tolist() == [0, 1, 2]


def test_refuses_one_tensor_under_both_names(tmp_path: Path) -> None:
    names = ("vision_model.ln.bias", "model.vision_model.ln.bias")
    save_file({name: np.zeros(3, np.float32) for name in names}, tmp_path / "model.safetensors")
    assert "vision_model.ln.bias" in refusal(lambda: Checkpoint.open(tmp_path))


def test_require_names_what_is_missing_or_different(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / SINGLE)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.require("a", (4, 3)) is checkpoint.tensors["a"]
    assert "tensor d: expected F32 or F16 or BF16 [2], found no such" in refusal(lambda: checkpoint.require("d", (2,)))
    assert "tensor a: expected F32 or F16 or BF16 [3, 4], found F32 [4, 3]" in refusal(
        lambda: checkpoint.require("a", (3, 4))
    )
    assert "tensor ids: expected F32 or F16 or BF16 [3], found I64 [3]" in refusal(
        lambda: checkpoint.require("ids", (3,))
    )
    save_file({"up_proj.qweight": np.zeros((2, 2), np.int32)}, tmp_path / SINGLE)
    quantized = Checkpoint.open(tmp_path)
    message = refusal(lambda: quantized.require("up_proj.weight", (2, 2)))
    assert "found up_proj.qweight, of a quantised checkpoint" in message
    checkpoint.require("b", (5, 2))
    assert set(checkpoint.unused()) == {"c", "empty", "ids"}


def test_a_file_cut_after_opening_is_named(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / SINGLE)
    checkpoint = Checkpoint.open(tmp_path)
    os.truncate(tmp_path / SINGLE, checkpoint.tensors["a"].offset + 5)
    assert "tensor a" in refusal(lambda: checkpoint.read_rows("a", 0, 4))
    (tmp_path / SINGLE).unlink()
    assert "tensor a: expected readable data, found No such file" in refusal(lambda: checkpoint.read_rows("a", 0, 4))


A = member("F32", [2], 0, 8)


@pytest.mark.parametrize(
    ("members", "data", "found"),
    [
        ({"a": A}, b"1234567", "(truncated)"),
        ({"a": A}, b"123456789", "bytes beyond the last tensor"),
        ({"a": A, "b": member("F32", [1], 4, 8)}, b"12345678", "b: expected data at byte"),
        ({"a": A, "b": member("F32", [1], 12, 16)}, b"0" * 16, "b: expected data at byte"),
        ({"a": member("F32", [3], 0, 8)}, b"12345678", "a: expected 12 bytes for F32 [3], found 8"),
        ({"a": member("F32", [2], 8, 0)}, b"12345678", "a: expected data_offsets"),
        ({"a": member("F32", [-2], 0, 8)}, b"12345678", "a: expected a shape"),
        ({"a": member("F32", [2.0], 0, 8)}, b"12345678", "a: expected a shape"),
        ({"a": member("F32", [True, 2], 0, 8)}, b"12345678", "a: expected a shape"),
        ({"a": member("F32", [1] * 9 + [2], 0, 8)}, b"12345678", "a: expected a shape"),
        ({"a": member("F4", [3], 0, 1)}, b"1", "a: expected 1.5 bytes for F4 [3], found 1"),
        ({"a": member("F33", [2], 0, 8)}, b"12345678", "a: expected a safetensors dtype, found F33"),
        ({"a": {"dtype": "F32", "shape": [2]}}, b"", "a: expected dtype, shape and data_offsets"),
        ({"a": A | {"more": 1}}, b"12345678", "a: expected dtype, shape and data_offsets"),
        ({"a": 1}, b"", "a: expected dtype, shape and data_offsets, found 1"),
        ({"__metadata__": {"format": 1}}, b"", "__metadata__: expected an object of strings"),
        (b'{"a": 1, "a": 2}', b"", "a: expected once, found twice"),
        (b"[]", b"", "expected a JSON object, found []"),
        (b"{", b"", "expected JSON"),
        (b"\xff\xfe{}", b"", "expected JSON"),
        ({"two\nlines": 1}, b"", "two\\nlines"),
    ],
)
def test_refuses_a_damaged_header(tmp_path: Path, members: Any, data: bytes, found: str) -> None:
    save_raw(tmp_path / SINGLE, members, data)
    message = refusal(lambda: Checkpoint.open(tmp_path))
    assert message.startswith(f"{tmp_path / SINGLE}: ") and found in message


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "found a file of 0 (truncated, or not safetensors)"),
        (b"1234567", "found a file of 7"),
        (b"\x08\0\0\0\0\0\0\0{}", "expected a safetensors header within 10 bytes, found one of 16"),
        (b"\xff" * 64, "truncated, or not safetensors"),
        (b"PK\x03\x04" + b"\x99" * 60, "zip or pickle file (never unpickled)"),
        (b"\x80\x02}q\x00" + b"\x99" * 60, "zip or pickle file (never unpickled)"),
    ],
)
def test_refuses_what_is_not_safetensors(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    assert found in refusal(lambda: Checkpoint.open(tmp_path))


def test_refuses_folders_without_usable_weights(tmp_path: Path) -> None:
    assert "expected a checkpoint folder, found none" in refusal(lambda: Checkpoint.open(tmp_path / "nowhere"))
    assert "found neither" in refusal(lambda: Checkpoint.open(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n")
    assert "found pytorch_model.bin (a pickled checkpoint is never unpickled)" in refusal(
        lambda: Checkpoint.open(tmp_path)
    )
    assert "found a file" in refusal(lambda: Checkpoint.open(tmp_path / "pytorch_model.bin"))
    save_sharded(tmp_path)
    Checkpoint.open(tmp_path)
    save_file({"a": np.ones((4, 3), np.float32)}, tmp_path / SINGLE)
    checkpoint = Checkpoint.open(tmp_path)  # the single file counts, whatever lies beside it
    assert set(checkpoint.tensors) == {"a"} and checkpoint.ignored == (INDEX,)
    assert checkpoint.read_rows("a", 0, 1).tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    "name",
    [
        "../a.safetensors",
        "/etc/a.safetensors",
        "sub/a.safetensors",
        "a\\b.safetensors",
        "a\0.safetensors",
        3,
        None,
    ],
)
def test_refuses_an_index_that_leaves_the_folder(tmp_path: Path, name: object) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    assert "weight_map.a: expected a file name in this folder" in refusal(lambda: Checkpoint.open(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model-00001.bin", "..", ""])
def test_refuses_an_index_of_other_files(tmp_path: Path, name: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    assert "weight_map.a: expected a .safetensors file, found" in refusal(lambda: Checkpoint.open(tmp_path))


def test_refuses_shards_and_index_that_disagree(tmp_path: Path) -> None:
    save_sharded(tmp_path)
    first, second = sorted(tmp_path.glob("model-*.safetensors"))
    index = json.loads((tmp_path / INDEX).read_text())
    files = index["weight_map"]

    def refused(weight_map: object) -> str:
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        return refusal(lambda: Checkpoint.open(tmp_path))

    for other in (files | {"d": first.name}, {k: v for k, v in files.items() if k != "c"}, files | {"c": first.name}):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": other}))
        assert set(Checkpoint.open(tmp_path).tensors) == set(files)  # the shards say what is in them
    nothing: tuple[Any, ...] = ({}, [], None, "all")
    for empty in nothing:
        assert "weight_map: expected an object of tensor and file names" in refused(empty)
    (tmp_path / INDEX).write_text(json.dumps(index))
    os.truncate(second, second.stat().st_size - 1)
    assert f"{second}: expected" in refusal(lambda: Checkpoint.open(tmp_path))
    second.unlink()
    assert f"{second}: expected a safetensors file, found no file" in refusal(lambda: Checkpoint.open(tmp_path))
    second.write_bytes(first.read_bytes())
    assert "expected each tensor in one shard, found it in" in refusal(lambda: Checkpoint.open(tmp_path))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
SIZES = st.lists(st.integers(-1, 5) | st.integers(), max_size=3)
MEMBER = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "BF16", "F4", "X"]) | JSON, "shape": SIZES | JSON, "data_offsets": SIZES | JSON}
)
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(members=st.dictionaries(st.text(max_size=3), MEMBER | JSON, max_size=3) | JSON, data=st.binary(max_size=24))
def test_any_header_is_read_or_refused_in_one_line(tmp_path: Path, members: Any, data: bytes) -> None:
    save_raw(tmp_path / SINGLE, json.dumps(members).encode(), data)
    try:
        checkpoint = Checkpoint.open(tmp_path)
    except UserError as e:
        assert "\n" not in str(e)
    else:
        assert sum(entry.nbytes for entry in checkpoint.tensors.values()) == len(data)


@FUZZ
@given(content=st.binary(max_size=64), length=st.integers(0, 2**64 - 1) | st.integers(0, 64))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path: Path, content: bytes, length: int) -> None:
    (tmp_path / SINGLE).write_bytes(length.to_bytes(8, "little") + content)
    try:
        Checkpoint.open(tmp_path)
    except UserError as e:
        assert "\n" not in str(e)


NAMES = st.sampled_from(["a", "b", "c"]) | st.text(max_size=3)
FILES = st.sampled_from(["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]) | JSON


@FUZZ
@given(index=st.fixed_dictionaries({"weight_map": st.dictionaries(NAMES, FILES, max_size=4) | JSON}) | JSON)
def test_any_index_is_read_or_refused_in_one_line(tmp_path: Path, index: Any) -> None:
    if not (tmp_path / INDEX).exists():
        save_sharded(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps(index))
    try:
        checkpoint = Checkpoint.open(tmp_path)
    except UserError as e:
        assert "\n" not in str(e)
    else:
        files = {tmp_path / file for file in index["weight_map"].values()}
        assert {entry.file for entry in checkpoint.tensors.values()} == files
