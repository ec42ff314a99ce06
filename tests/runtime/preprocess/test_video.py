"""Clips that cannot be read, each refused in one line; sampling and layout."""

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ernie_export.common.errors import InvalidFile, UserError
from ernie_export.common.processor_settings import VIDEO_FILE
from ernie_export.runtime.preprocess.resample import resize_bicubic
from ernie_export.runtime.preprocess.video import SampledVideo, VideoProcessor, label
from ernie_export.runtime.preprocess.video_limits import DecodeLimits


@pytest.fixture(scope="module")
def processor(mini: Path) -> VideoProcessor:
    return VideoProcessor.from_folder(mini)


def refused(processor: VideoProcessor, source, *words: str) -> None:
    with pytest.raises(UserError) as error:
        processor.load(source)
    line = str(error.value)
    assert "\n" not in line and all(word in line for word in words), line


@pytest.mark.parametrize("units", [16, 64])
def test_a_font_whose_glyphs_cannot_be_drawn(folder: Path, units: int):
    """Its letters are many times as large as they say: FreeType loads it, and fails when it draws."""
    font = folder / "Roboto-Regular.ttf"
    data = bytearray(font.read_bytes())
    entry = data.index(b"head", 12)  # of the table of tables; the offset follows the checksum
    head = int.from_bytes(data[entry + 8 : entry + 12])
    data[head + 18 : head + 20] = units.to_bytes(2)
    font.write_bytes(data)
    with pytest.raises(InvalidFile, match=r"Roboto-Regular.ttf: expected the font that timestamps are drawn with"):
        VideoProcessor.from_folder(folder)


def test_no_file(processor: VideoProcessor, tmp_path: Path):
    refused(processor, tmp_path / "none.mp4", "none.mp4", "no such file")
    refused(processor, tmp_path, "a folder")
    refused(processor, "a\x00b.mp4", "expected a video")


def test_an_empty_file(processor: VideoProcessor, tmp_path: Path):
    path = tmp_path / "empty.mp4"
    path.touch()
    refused(processor, path, "empty.mp4", "an empty file")


def test_no_video(processor: VideoProcessor, tmp_path: Path):
    path = tmp_path / "text.mp4"
    path.write_text("not a clip")
    refused(processor, path, "text.mp4", "expected a video")


def test_sound_only(processor: VideoProcessor, tmp_path: Path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    refused(processor, path, "sound.wav", "a video file")


@pytest.mark.parametrize("part", [0.3, 0.6, 0.8, 0.95])
def test_a_truncated_file(processor: VideoProcessor, clip: Path, tmp_path: Path, part: float):
    path = tmp_path / "half.mp4"
    path.write_bytes(clip.read_bytes()[: int(clip.stat().st_size * part)])
    refused(processor, path, "half.mp4", "found")


def test_a_frame_of_too_many_pixels(mini: Path, clip: Path):
    fields = {name: getattr(VideoProcessor.from_folder(mini), name) for name in VideoProcessor.__dataclass_fields__}
    refused(
        VideoProcessor(**fields | {"limits": DecodeLimits(max_source_pixels=1_000)}),
        clip,
        "at most 1000 pixels",
        "48×32",
    )


def test_wrong_frames(processor: VideoProcessor):
    refused(processor, [], "found none")
    refused(processor, np.zeros((0, 8, 8, 3), np.uint8), "found none")
    refused(processor, np.zeros((2, 8, 8, 3), np.float32), "uint8", "float32")
    refused(processor, np.zeros((2, 8, 8), np.uint8), "(2, 8, 8)")
    refused(processor, np.zeros((2, 8, 8, 4), np.uint8), "(2, 8, 8, 4)")
    refused(processor, [Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))], "one size")


def test_frames_too_small_or_too_long_for_the_model(processor: VideoProcessor):
    with pytest.raises(UserError, match="at least 10 pixels a side, found 9×20"):
        processor([processor.load(np.zeros((2, 20, 9, 3), np.uint8))])
    with pytest.raises(UserError, match="aspect ratio of at most 200"):
        processor([processor.load(np.zeros((2, 10, 2010, 3), np.uint8))])


FIXTURES = [HealthCheck.function_scoped_fixture]  # the folder may be shared: each example writes the same file anew
CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=FIXTURES)
@given(st.binary(max_size=300))
def test_random_bytes(processor: VideoProcessor, tmp_path: Path, data: bytes):
    damaged(processor, tmp_path, data)


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(0, 10**6), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8), st.booleans()
)
def test_damaged_clips(processor: VideoProcessor, clip: Path, tmp_path: Path, length: int, changes: list, whole: bool):
    data = bytearray(clip.read_bytes())
    data = data if whole else data[: max(length % len(data), 1)]
    for place, value in changes:
        data[place % len(data)] = value
    damaged(processor, tmp_path, bytes(data))


def damaged(processor: VideoProcessor, tmp_path: Path, data: bytes) -> None:
    """Either a clip or one line: never another exception."""
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    try:
        loaded = processor.load(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert loaded.frames.ndim == 4 and len(loaded.frames) <= processor.max_frames


def test_only_sampled_frames_are_held(processor: VideoProcessor, clip: Path):
    loaded = processor.load(clip)
    assert loaded.frames.shape == (processor.max_frames, 32, 48, 3)
    # Grey 25·i in frame i: the step of 10/6 takes frames 0, 1, 3, 5, 6 and 8.
    assert np.round(loaded.frames.mean(axis=(1, 2, 3)) / 25).tolist() == [0, 1, 3, 5, 6, 8]
    assert loaded.timestamps == pytest.approx((0, 0.2, 0.6, 1.0, 1.2, 1.6))


def test_a_container_that_does_not_state_its_length(processor: VideoProcessor, clip: Path, tmp_path: Path):
    path = tmp_path / "clip.mkv"
    with av.open(str(clip)) as reader, av.open(str(path), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                writer.mux(packet)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    loaded = processor.load(path)
    expected = processor.load(clip)
    assert np.array_equal(loaded.frames, expected.frames) and loaded.timestamps == expected.timestamps


def test_an_odd_count_repeats_the_last_frame(processor: VideoProcessor):
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    pixels, grid = processor([processor.load(frames)])
    assert grid[0, 0] == 4
    third, fourth = pixels.reshape(4, -1)[2:]
    assert np.array_equal(third, fourth)


def test_timestamps_are_drawn_on_the_frame(processor: VideoProcessor):
    fields = {name: getattr(processor, name) for name in VideoProcessor.__dataclass_fields__}
    plain = VideoProcessor(**fields | {"font": None})
    clip = SampledVideo(np.full((2, 112, 112, 3), 128, np.uint8), (0.0, 3723.456))
    drawn = processor([clip])[0].reshape(2, -1)
    bare = plain([clip])[0].reshape(2, -1)
    assert (bare == bare[:, :1]).reshape(2, -1, 3, 196)[:, :, 0].all()
    assert (drawn != bare).any(axis=1).all() and (drawn[0] != drawn[1]).any()
    assert clip.frames.min() == clip.frames.max() == 128  # what was given is left as it is


@pytest.mark.parametrize(
    "second,text",
    [
        (0, "time: 00:00:00.00"),
        (59.994, "time: 00:00:59.99"),
        (3723.456, "time: 01:02:03.46"),
        (360_000, "time: 100:00:00.00"),
    ],
)
def test_labels(second: float, text: str):
    assert label(second) == text


def test_sampling_refuses_what_it_cannot_do(folder: Path, change):
    change(VIDEO_FILE, num_frames=5)
    with pytest.raises(UserError, match=r"at least 5 frames \(num_frames\), found 4"):
        VideoProcessor.from_folder(folder).indices(4, 10.0, "clip")
    change(VIDEO_FILE, num_frames=None, fps=2)
    with pytest.raises(UserError, match="expected a frame rate"):
        VideoProcessor.from_folder(folder).load(np.zeros((4, 20, 20, 3), np.uint8))
    assert len(VideoProcessor.from_folder(folder).load(np.zeros((40, 20, 20, 3), np.uint8), fps=16).frames) == 5


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(0, 255))
def test_resizing_keeps_a_flat_frame_flat(height: int, width: int, to_height: int, to_width: int, grey: int):
    """The weights sum to one to within their rounding: a flat frame moves by one level at most."""
    frame = np.full((3, height, width), grey, dtype=np.uint8)
    result = resize_bicubic(frame, to_height, to_width)
    assert result.shape == (3, to_height, to_width) and result.dtype == np.uint8
    assert np.abs(result.astype(int) - grey).max() <= 1
