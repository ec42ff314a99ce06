"""Clips, bit for bit against Ernie4_5_VLMoeVideoProcessor after its `load_video(..., backend="pyav")`."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ernie_export.runtime.preprocess.resample import resize_bicubic
from ernie_export.runtime.preprocess.video import VideoProcessor, label

DEFAULT_SIZE = {"shortest_edge": 299 * 28 * 28, "longest_edge": 1196 * 28 * 28}


@pytest.fixture(scope="module")
def reference(reference_processor):
    return lambda folder: reference_processor(folder).video_processor


def assert_same(ours, theirs) -> None:
    pixels, grid = ours
    expected = theirs["pixel_values_videos"].numpy()
    expected_grid = theirs["video_grid_thw"].numpy()
    assert pixels.dtype == expected.dtype == np.float32
    assert grid.dtype == expected_grid.dtype == np.int64
    assert np.array_equal(grid, expected_grid)
    assert np.array_equal(pixels, expected)


def compare(folder: Path, reference, *sources) -> tuple[np.ndarray, np.ndarray]:
    processor = VideoProcessor.from_folder(folder)
    result = processor([processor.load(source) for source in sources])
    given = [str(s) if isinstance(s, Path) else s for s in sources]
    assert_same(result, reference(folder)(given, return_tensors="pt"))
    return result


@pytest.mark.parametrize("seed", range(40))
def test_resizing_is_pytorchs(seed: int):
    """The kernel alone: noise, hard edges and one axis kept, over wide reductions and enlargements."""
    import torch
    from torchvision.transforms.v2 import functional as tvF

    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(2, 400, 2))
    to_height, to_width = (int(n) * 28 for n in rng.integers(1, 12, 2))
    frame = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
    if seed % 3 == 0:
        frame = (frame // 128 * 255).astype(np.uint8)
    if seed % 4 == 0:
        to_height = height
    if seed % 4 == 1:
        to_width = width
    expected = tvF.resize(
        torch.from_numpy(frame[None, None]), [to_height, to_width], tvF.InterpolationMode.BICUBIC, antialias=True
    )
    assert np.array_equal(resize_bicubic(frame, to_height, to_width), expected[0, 0].numpy())


def test_resizing_is_not_pillows():
    """What makes our own kernel necessary."""
    frame = np.random.default_rng(0).integers(0, 256, (3, 110, 119), dtype=np.uint8)
    pillow = Image.fromarray(frame.transpose(1, 2, 0)).resize((280, 84), Image.Resampling.BICUBIC)
    assert not np.array_equal(resize_bicubic(frame, 84, 280), np.asarray(pillow).transpose(2, 0, 1))


SAMPLING = {
    "default": {"min_frames": 16, "max_frames": 180},
    "mini": {},
    "fps": {"fps": 2, "min_frames": 4, "max_frames": 64},
    "fractional-fps": {"fps": 0.7, "min_frames": 1, "max_frames": 180},
    "num-frames": {"num_frames": 6},
}


@pytest.mark.parametrize("changes", SAMPLING.values(), ids=SAMPLING)
def test_sampled_indices_and_times(altered, reference, changes: dict):
    from transformers.video_utils import VideoMetadata

    folder = altered(video=changes)
    ours = VideoProcessor.from_folder(folder)
    theirs = reference(folder)
    for total in [*range(6, 250, 2), *range(250, 4000, 61), 86_399, 100_000]:
        rate = float(Fraction(30_000, 1001) if total % 3 else Fraction(total % 60 + 1, 7))
        metadata = VideoMetadata(total_num_frames=total, fps=rate)
        expected = theirs.sample_frames(metadata, fps=ours.fps)
        indices = ours.indices(total, rate, "clip")
        assert indices.dtype == np.int32 and np.array_equal(indices, expected.numpy()), total
        metadata.frames_indices = expected
        labels = [label(second) for second in ours.timestamps(indices, rate)]
        assert labels == [theirs._convert_timestamp(second) for second in metadata.timestamps], total


CLIPS = {
    "even-count": (4, 64, 96, 10, "mpeg4"),
    "odd-count": (5, 100, 62, 10, "mpeg4"),
    "one-frame": (1, 64, 64, 10, "mpeg4"),
    "sampled": (23, 96, 130, Fraction(30_000, 1001), "mpeg4"),
    "h264-with-reordered-frames": (31, 120, 90, 25, "libx264"),
    "hours": (9, 64, 64, Fraction(1, 2000), "mpeg4"),
    "wide": (7, 28, 560, 3, "mpeg4"),
    "tall": (6, 300, 20, 24, "mpeg4"),
}


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_a_file(mini: Path, reference, write_clip, clip: tuple):
    path = write_clip(*clip)
    pixels, grid = compare(mini, reference, path)
    assert grid[0, 0] % 2 == 0 and len(pixels) == grid.prod()


@pytest.mark.parametrize("seed", range(12))
def test_a_random_file(altered, reference, write_clip, seed: int):
    rng = np.random.default_rng(seed)
    low = int(rng.integers(1, 20)) * 784
    folder = altered(
        video={
            "size": {"shortest_edge": low, "longest_edge": low * int(rng.integers(1, 4))},
            "min_frames": int(rng.integers(1, 5)),
            "max_frames": int(rng.integers(5, 12)),
        }
    )
    frames, height, width = int(rng.integers(1, 30)), *(2 * int(n) for n in rng.integers(8, 120, 2))
    compare(folder, reference, write_clip(frames, height, width, Fraction(int(rng.integers(1, 60_000)), 1001)))


def test_two_files_of_unequal_size(mini: Path, reference, write_clip):
    first = write_clip(5, 64, 96, name="a.mp4")
    second = write_clip(12, 130, 70, name="b.mp4")
    _, grid = compare(mini, reference, first, second)
    assert len({tuple(row) for row in grid.tolist()}) == 2


def test_the_default_settings(altered, reference, write_clip):
    folder = altered(video={"size": DEFAULT_SIZE, "min_frames": 16, "max_frames": 180})
    pixels, grid = compare(folder, reference, write_clip(3, 180, 320))
    assert DEFAULT_SIZE["shortest_edge"] <= grid[0, 1] * grid[0, 2] * 196 <= DEFAULT_SIZE["longest_edge"]
    compare(folder, reference, write_clip(1, 720, 1920, name="large.mp4"))


def test_more_frames_than_the_default_limit(altered, reference, write_clip):
    folder = altered(video={"size": {"shortest_edge": 784, "longest_edge": 1568}, "min_frames": 16, "max_frames": 180})
    _, grid = compare(folder, reference, write_clip(200, 32, 48))
    assert grid[0, 0] == 180
    _, grid = compare(folder, reference, write_clip(11, 32, 48))
    assert grid[0, 0] == 12  # 16 is a floor on the sampling, not a pad: 11 frames and the last again


def test_a_clip_trimmed_by_an_edit_list(mini: Path, reference, write_clip, tmp_path: Path):
    """A trimmed phone video: the header counts frames that the player is to skip."""
    source = write_clip(30, 64, 96, 10, "libx264")
    path = tmp_path / "trimmed.mp4"
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with av.open(str(source)) as reader, av.open(str(path), "w", options=options) as writer:
        stream = reader.streams.video[0]
        target = writer.add_stream_from_template(stream)
        assert stream.time_base is not None
        offset = int(1.05 / stream.time_base)
        for packet in reader.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, target
                writer.mux(packet)
    _, grid = compare(mini, reference, path)
    assert grid[0, 0] < 6


@pytest.mark.parametrize("count", [2, 5, 30])  # of a single frame the reference loses an axis, and fails
def test_frames_in_memory(mini: Path, reference, count: int):
    frames = np.random.default_rng(count).integers(0, 256, (count, 61, 83, 3), dtype=np.uint8)
    pixels, grid = compare(mini, reference, frames.copy())
    processor = VideoProcessor.from_folder(mini)
    for same in (list(frames), [Image.fromarray(frame) for frame in frames]):
        again, again_grid = processor([processor.load(same)])
        assert np.array_equal(again, pixels) and np.array_equal(again_grid, grid)


@pytest.mark.parametrize("rate", [8, 29.97, 0.01])
def test_frames_in_memory_at_a_rate(mini: Path, reference, rate: float):
    from transformers.video_utils import VideoMetadata

    frames = np.random.default_rng(1).integers(0, 256, (19, 61, 83, 3), dtype=np.uint8)
    processor = VideoProcessor.from_folder(mini)
    metadata = [VideoMetadata(total_num_frames=19, fps=rate)]
    expected = reference(mini)([frames.copy()], video_metadata=metadata, return_tensors="pt")
    assert_same(processor([processor.load(frames, rate)]), expected)


SETTINGS = {
    "no-timestamps": {"draw_on_frames": False},
    "no-rescale": {"do_rescale": False},
    "no-normalize": {"do_normalize": False},
    "rescale-factor": {"rescale_factor": 0.0071},
    "other-means": {"image_mean": [0.1, 0.2, 0.7], "image_std": [0.31, 0.5, 1.1]},
    "one-mean": {"image_mean": 0.5, "image_std": 0.25},
    "patch-16": {"patch_size": 16},
    "every-frame": {"do_sample_frames": False},
    "num-frames": {"num_frames": 5},
    "fps": {"fps": 2.5},
}


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_other_settings(altered, reference, write_clip, changes: dict):
    compare(altered(video=changes), reference, write_clip(17, 80, 100, Fraction(24_000, 1001)))


def test_without_resizing(altered, reference):
    frames = np.random.default_rng(1).integers(0, 256, (3, 56, 84, 3), dtype=np.uint8)
    compare(altered(video={"do_resize": False}), reference, frames)
