"""Media as people's devices write them: turned clips, varying frame rates, covers, files cut off, odd pictures."""

from pathlib import Path

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type as SideDataType
from numpy.typing import NDArray
from PIL import Image

from ernie_export.common.errors import InvalidMedia
from ernie_export.runtime.preprocess.image import ImageProcessor
from ernie_export.runtime.preprocess.orientation import upright
from ernie_export.runtime.preprocess.video import SampledVideo, VideoProcessor
from tests.paths import CASES, MINI


def load(name: str) -> SampledVideo:
    return VideoProcessor.from_folder(MINI).load(CASES / name)


def dark_centre(frame: NDArray[np.uint8]) -> tuple[float, float]:
    """Return the mean row and column of what stands out from a frame's most frequent brightness."""
    grey = frame.mean(axis=2)
    background = np.bincount(grey.astype(int).ravel()).argmax()
    rows, columns = np.nonzero(np.abs(grey - background) > 60)
    return rows.mean(), columns.mean()


def test_a_clip_filmed_on_its_side_is_turned() -> None:
    centres = [dark_centre(frame) for frame in load("rot90.mp4").frames]
    rows, columns = zip(*centres, strict=True)
    assert np.ptp(rows) < 8 and list(columns) == sorted(columns, reverse=True) and np.ptp(columns) > 50  # to the left


MATRICES = {
    "as it lies": ((1, 0, 0, 1), lambda p: p),
    "a quarter clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "half": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
    "a quarter counterclockwise": ((0, -1, 1, 0), lambda p: np.rot90(p)),
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda p: p[::-1]),
    "transposed": ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)),
    "about the other diagonal": ((0, -1, -1, 0), lambda p: np.rot90(p, 2).transpose(1, 0, 2)),
}


class Matrix:
    """Side data of a frame."""

    def __init__(self, numbers: tuple[int, int, int, int]) -> None:
        a, b, c, d = (number << 16 for number in numbers)
        self.numbers = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], np.int32)

    def __bytes__(self) -> bytes:
        return self.numbers.tobytes()


class Frame:
    """A decoded frame with a display matrix."""

    def __init__(self, pixels: NDArray[np.uint8], numbers: tuple[int, int, int, int]) -> None:
        self.pixels = pixels
        self.side_data = {SideDataType.DISPLAYMATRIX: Matrix(numbers)}

    def to_ndarray(self, format: str) -> NDArray[np.uint8]:
        return self.pixels


@pytest.mark.parametrize("case", MATRICES)
def test_every_quarter_turn_and_mirror(case: str) -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    numbers, expected = MATRICES[case]
    assert np.array_equal(upright(Frame(pixels, numbers)), expected(pixels))  # type: ignore[arg-type]


def test_frames_of_a_varying_rate_are_taken_and_stamped_by_their_times() -> None:
    video = load("vfr.mp4")
    assert np.allclose(video.timestamps, [0, 1, 2, 3, 4, 4.5])
    still = [np.abs(frame.astype(int) - video.frames[0]).mean() < 1 for frame in video.frames]
    assert still == [True, True, True, True, False, False]  # the circle appears at 4.0 s


def test_the_stream_is_the_one_that_ffmpeg_shows() -> None:
    centres = [dark_centre(frame)[1] for frame in load("coverfirst.mkv").frames]
    assert len(centres) == 5 and np.ptp(centres) > 50  # it moves: no still


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("trunc.webm", "expected 5 seconds, found 1 (the video is truncated)"),
        ("raw.h264", "found a file of another format"),
        ("cover.mp3", "found a file of another format"),
    ],
)
def test_what_is_no_whole_clip_says_so(name: str, found: str) -> None:
    with pytest.raises(InvalidMedia) as refused:
        load(name)
    assert found in str(refused.value)


def test_a_sound_file_with_a_cover_is_no_clip(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    with pytest.raises(InvalidMedia, match="no video stream"):
        VideoProcessor.from_folder(MINI).load(path)


def picture(name: str, processor: ImageProcessor | None = None) -> NDArray[np.uint8]:
    processor = processor or ImageProcessor.from_folder(MINI)
    path = CASES / name
    from_path = np.asarray(processor.load(path))
    assert np.array_equal(from_path, np.asarray(processor.load(path.read_bytes())))
    with Image.open(path) as opened:
        assert np.array_equal(from_path, np.asarray(processor.load(opened)))
    return from_path


def test_grey_of_16_bits_is_scaled() -> None:
    pixels = picture("gray16.png")
    with Image.open(CASES / "gray16.png") as opened:
        assert np.array_equal(pixels[..., 0], np.asarray(opened) >> 8)
    assert pixels.min() < 100 < 150 < pixels.max()


def test_transparency_is_laid_on_white_wherever_the_picture_comes_from() -> None:
    pixels = picture("black_on_transparent.png")
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels.min() == 0


def test_a_limit_above_pillow_s_own_is_kept_to_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (100, 90)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # it refuses twice as many
    processor = ImageProcessor.from_folder(MINI)
    for limit in (8_999, 9_000):
        limited = ImageProcessor(processor.settings, processor.table, max_source_pixels=limit)
        if limit < 9_000:
            with pytest.raises(InvalidMedia, match="at most 8999 pixels, found 100×90"):
                limited.load(path)
        else:
            assert limited.load(path).size == (100, 90)
        assert Image.MAX_IMAGE_PIXELS == 1000
