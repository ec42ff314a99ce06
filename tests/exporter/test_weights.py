"""The streamed data file: any safetensors reader opens it, values are exact, and failures leave nothing behind."""

import errno
import hashlib
import os
import resource
import shutil
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ernie_export.common.errors import CannotWrite, UserError
from ernie_export.common.safetensors_header import read_header
from ernie_export.exporter.weights.direct_file import BLOCKS, Blocks
from ernie_export.exporter.weights.writer import plan, write
from ernie_export.graphs.checkpoint.reader import SINGLE, Checkpoint
from ernie_export.graphs.weight_spec import Constant, Interleaved, Piece, Rows, SourceSlice, Weight

F32 = np.dtype(np.float32)
F16 = np.dtype(np.float16)
BF16 = np.dtype(ml_dtypes.bfloat16)
STORED = [F32, F16, BF16]


def random(shape: tuple[int, ...], dtype: np.dtype, seed: int) -> np.ndarray:
    """Random bits of `dtype` without NaN, so that extremes, subnormals and infinities take part."""
    bits = np.random.default_rng(seed).integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
    values = bits.view(dtype).reshape(shape)
    return np.where(np.isnan(values.astype(np.float32)), dtype.type(1), values)


def checkpoint_of(folder: Path, arrays: dict[str, np.ndarray]) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    save_file(arrays, folder / SINGLE)
    return Checkpoint.open(folder)


def written(
    folder: Path, checkpoint: Checkpoint, content: list[Weight], blocks: Blocks = BLOCKS
) -> dict[str, np.ndarray]:
    """Write `content`, check file, digest, progress and offsets, and read it back with the safetensors library."""
    layout = plan(content)
    path = folder / "weights.safetensors"
    reported: list[int] = []
    path.unlink(missing_ok=True)
    digest = write(layout, checkpoint, path, reported.append, block_sizes=blocks)
    raw = path.read_bytes()
    assert len(raw) == layout.nbytes == sum(reported)
    assert hashlib.sha256(raw).hexdigest() == digest
    loaded = load_file(path)
    assert set(loaded) == {weight.name for weight in content}
    ours = read_header(path)
    for weight in content:
        array = loaded[weight.name]
        offset = layout.offsets[weight.name]
        assert (array.shape, array.dtype) == (weight.shape, weight.dtype)
        assert raw[offset : offset + weight.nbytes] == array.tobytes()
        assert offset == ours[weight.name].offset
        assert offset % weight.dtype.itemsize == 0
        assert weight.nbytes % 64 or offset % 64 == 0
        assert weight.nbytes % 4096 or offset % 4096 == 0
    return loaded


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("target", STORED, ids=str)
def test_every_piece_and_cast(tmp_path: Path, stored: np.dtype, target: np.dtype) -> None:
    arrays = {name: random((6, 5), stored, seed) for seed, name in enumerate(["gate", "up", "down", "other"])}
    constant = np.arange(7, dtype=np.int64)
    content = [
        Weight("rows", target, (2, 6, 5), (Rows("down"), Rows("other"))),
        Weight("slice", target, (2, 5), (SourceSlice("down", 3, 4), SourceSlice("other", 0, 1))),
        Weight("pairs", target, (12, 5), (Interleaved("gate", "up"),)),
        Weight("both", target, (13, 5), (Interleaved("up", "gate"), Constant(np.ones((1, 5))))),
        Weight("ids", np.dtype(np.int64), (7,), (Constant(constant),)),
        Weight("scalar", F32, (), (Constant(np.array(2.5, np.float32)),)),
        Weight("nothing", target, (0, 5), (SourceSlice("down", 2, 2),)),
    ]
    with np.errstate(over="ignore"):  # float32 and bfloat16 reach past float16
        cast = {name: array.astype(target) for name, array in arrays.items()}
        loaded = written(tmp_path, checkpoint_of(tmp_path / "in", arrays), content)
    pairs = np.stack([cast["gate"], cast["up"]], axis=1).reshape(12, 5)
    swapped = np.stack([cast["up"], cast["gate"]], axis=1).reshape(12, 5)
    expected = {
        "rows": np.stack([cast["down"], cast["other"]]),
        "slice": np.concatenate([cast["down"][3:4], cast["other"][:1]]),
        "pairs": pairs,
        "both": np.concatenate([swapped, np.ones((1, 5), target)]),
        "ids": constant,
        "scalar": np.float32(2.5),
        "nothing": np.zeros((0, 5), target),
    }
    for name, array in expected.items():
        assert loaded[name].tobytes() == array.tobytes(), name
    if target == F32:  # a wider dtype holds every value exactly
        assert loaded["rows"][0].astype(stored).tobytes() == arrays["down"].tobytes()


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through the page cache"])
def test_tensors_larger_than_a_block(tmp_path: Path, direct: bool) -> None:
    blocks = Blocks(made_bytes=64, written_bytes=4096, count=2, direct=direct)  # a direct write takes no less
    arrays = {name: random((33, 7), BF16, seed) for seed, name in enumerate(["gate", "up", "down"])}
    arrays["wide"] = random((3, 129), BF16, 9)  # two rows are more than a block
    arrays["wider"] = random((3, 129), BF16, 10)
    constant = random((50, 3), F32, 11)
    checkpoint = checkpoint_of(tmp_path / "in", arrays)
    for target in (F32, BF16):
        content = [
            Weight("rows", target, (33, 7), (Rows("down"),)),
            Weight("pairs", target, (66, 7), (Interleaved("gate", "up"),)),
            Weight("wide", target, (6, 129), (Interleaved("wide", "wider"),)),
            Weight("constant", F32, (50, 3), (Constant(constant),)),
        ]
        loaded = written(tmp_path, checkpoint, content, blocks)
        assert loaded["rows"].tobytes() == arrays["down"].astype(target).tobytes()
        assert loaded["pairs"][0::2].tobytes() == arrays["gate"].astype(target).tobytes()
        assert loaded["pairs"][1::2].tobytes() == arrays["up"].astype(target).tobytes()
        assert loaded["wide"][1::2].tobytes() == arrays["wider"].astype(target).tobytes()
        assert loaded["constant"].tobytes() == constant.tobytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(
        st.tuples(st.sampled_from([*STORED, np.dtype(np.int8)]), st.lists(st.integers(0, 5), max_size=3)), max_size=6
    )
)
def test_any_shapes_stay_aligned_without_holes(tmp_path: Path, kinds: list[tuple[np.dtype, list[int]]]) -> None:
    content = [
        Weight(f"w{i}", dtype, tuple(shape), (Constant(np.zeros(shape)),)) for i, (dtype, shape) in enumerate(kinds)
    ]
    written(tmp_path, Checkpoint(tmp_path, {}), content)


@pytest.mark.parametrize(
    "piece",
    [
        Rows("b"),
        Constant(np.zeros(11)),
        SourceSlice("a", 0, 3),
        SourceSlice("a", 2, 5),
        Interleaved("a", "b"),
        Interleaved("a", "a"),
    ],
    ids=str,
)
def test_pieces_that_do_not_fill_the_shape_are_refused(tmp_path: Path, piece: Piece) -> None:
    checkpoint = checkpoint_of(tmp_path / "in", {"a": np.zeros((4, 3), np.float32), "b": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="^w: "):
        write(plan([Weight("w", F32, (4, 3), (piece,))]), checkpoint, tmp_path / "out", lambda _: None)
    assert not (tmp_path / "out").exists()


def test_two_weights_of_one_name_are_refused() -> None:
    weight = Weight("w", F32, (1,), (Constant(np.zeros(1)),))
    with pytest.raises(ValueError, match="two weights named w"):
        plan([weight, weight])


def one_line(folder: Path, checkpoint: Checkpoint, path: Path, source: str = "a") -> str:
    shape = checkpoint.tensors[source].shape
    with pytest.raises(UserError) as caught:
        write(plan([Weight("w", F32, shape, (Rows(source),))]), checkpoint, path, lambda _: None)
    message = str(caught.value)
    assert "\n" not in message
    says_what_instead = "expected" in message and "found" in message
    assert says_what_instead or (isinstance(caught.value, CannotWrite) and "cannot write" in message)
    return message


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = checkpoint_of(tmp_path / "in", {"a": np.zeros((2**10, 2**10), np.float32)})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    message = one_line(tmp_path, checkpoint, tmp_path / "out")
    assert message == f"{tmp_path / 'out'}: cannot write {2**22 + 4096} bytes: the disk has 1000 bytes free"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_disk_that_fills_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    checkpoint = checkpoint_of(tmp_path / "in", {"a": np.zeros((2**10, 2**10), np.float32)})
    calls = []

    def full(descriptor: int, *data: memoryview) -> int:
        calls.append(descriptor)
        if call == "fsync" or len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data[0])

    monkeypatch.setattr(os, call, full)
    message = one_line(tmp_path, checkpoint, tmp_path / "out")
    assert message.startswith(f"{tmp_path / 'out'}: cannot write a new file of {2**22 + 4096} bytes: No space left")
    assert "bytes free" in message
    assert calls and not (tmp_path / "out").exists()


def test_a_limit_of_the_operating_system_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path / "in", {"a": np.zeros((2**10, 2**10), np.float32)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        message = one_line(tmp_path, checkpoint, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "4198400 bytes: File too large" in message
    assert not (tmp_path / "out").exists()


def test_refuses_to_overwrite_and_folders_it_cannot_write(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path / "in", {"a": np.zeros(3, np.float32)})
    (tmp_path / "out").write_bytes(b"precious")
    assert "4108 bytes: File exists" in one_line(tmp_path, checkpoint, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"precious"
    assert "cannot write to the folder: No such file" in one_line(tmp_path, checkpoint, tmp_path / "nowhere" / "out")
    assert "4108 bytes: Not a directory" in one_line(tmp_path, checkpoint, tmp_path / "out" / "out")


def test_a_source_cut_after_opening_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path / "in", {"a": np.zeros((4, 3), np.float32)})
    os.truncate(tmp_path / "in" / SINGLE, checkpoint.tensors["a"].offset + 5)
    assert f"{tmp_path / 'in' / SINGLE}: expected" in one_line(tmp_path, checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path / "in", {"a": np.zeros((4, 3), np.float32)})

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(plan([Weight("w", F32, (4, 3), (Rows("a"),))]), checkpoint, tmp_path / "out", interrupt)
    assert not (tmp_path / "out").exists()


def test_memory_stays_at_a_few_blocks(tmp_path: Path) -> None:
    """48 MiB of bfloat16 to float32: NumPy's allocations, which tracemalloc sees, stay below 32 MiB."""
    rows = 3 * 2**10
    checkpoint = checkpoint_of(tmp_path / "in", {name: np.ones((rows, 2**12), BF16) for name in ("gate", "up")})
    content = [Weight("w", F32, (2 * rows, 2**12), (Interleaved("gate", "up"),))]
    content.append(Weight("v", F32, (rows, 2**12), (Rows("up"),)))
    tracemalloc.start()
    try:
        write(plan(content), checkpoint, tmp_path / "out", lambda _: None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 * 2**20
