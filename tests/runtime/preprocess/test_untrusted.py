"""Images and videos that come as bytes from outside: as from a file, and from nothing but their own data."""

import dataclasses
import io
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ernie_export.common.errors import InvalidMedia, UserError
from ernie_export.runtime.preprocess import ImageProcessor, VideoProcessor
from ernie_export.runtime.preprocess.video_decode import decode_video
from ernie_export.runtime.preprocess.video_limits import UNTRUSTED_DECODERS, DecodeLimits
from tests.paths import MEDIA, MINI

CLIP = MEDIA / "passing.mp4"


@pytest.fixture(scope="module")
def videos():
    return VideoProcessor.from_folder(MINI)


@pytest.fixture(scope="module")
def whole(videos):
    return videos.load(CLIP)


def test_bytes_give_what_the_file_gives(videos, whole):
    clip = videos.load(CLIP.read_bytes())
    assert np.array_equal(clip.frames, whole.frames) and clip.timestamps == whole.timestamps


@pytest.mark.parametrize(
    "playlist",
    [
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:6,\nfile:{CLIP}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{CLIP}'\n",
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n{CLIP}",
    ],
    ids=["hls", "concat", "sdp"],
)
def test_a_playlist_opens_no_file(videos, tmp_path, playlist):
    """Neither as bytes nor, whatever its name says, as a file."""
    refused = r"the clip: expected a video file \(.*\), found (a file of another format|Invalid)"
    with pytest.raises(InvalidMedia, match=refused):
        videos.load(playlist.encode(), name="the clip")
    for name in ("list.m3u8", "video.mp4"):
        (tmp_path / name).write_text(playlist)
        with pytest.raises(InvalidMedia, match=rf"{name}: expected a video file \(.*\), found"):
            videos.load(tmp_path / name)


def test_the_size_that_counts_is_the_decoders(videos, tmp_path):
    """A container may understate the size of its frames: limits hold for what the decoder finds."""
    path = tmp_path / "clip.mov"
    write_understated(path, 512, 256)
    with av.open(str(path)) as container:  # which reads no video packet while it looks what there is: sound is first
        assert (container.streams.video[0].width, container.streams.video[0].height) == (64, 64)
    assert videos.load(path).frames.shape[1:] == (256, 512, 3)
    frames = len(videos.load(path).frames)
    limits = DecodeLimits(max_sampled_pixels=frames * 64 * 64)
    with pytest.raises(InvalidMedia, match=f"of at most {frames * 64 * 64} pixels together, found {frames} of 512×256"):
        dataclasses.replace(videos, limits=limits).load(path.read_bytes())
    with pytest.raises(InvalidMedia):  # by FFmpeg's own max_pixels, or ours after it
        dataclasses.replace(videos, limits=DecodeLimits(max_source_pixels=64 * 64)).load(path.read_bytes())


def test_frames_of_another_size_are_refused_before_they_are_converted(videos, tmp_path):
    """Two streams of unequal size behind one another, as in a broadcast."""
    parts = []
    for number, (width, height) in enumerate(((64, 64), (128, 64))):
        path = tmp_path / f"{number}.ts"
        write_clip(path, width, height, "mpeg2video")
        parts.append(path.read_bytes())
    with pytest.raises(InvalidMedia, match="frames of one size"):
        dataclasses.replace(videos, sample=False).load(b"".join(parts))


def test_only_known_decoders_for_untrusted_bytes(videos, tmp_path):
    path = tmp_path / "clip.avi"
    write_clip(path, 64, 64, "ffv1")
    assert len(videos.load(path).frames)
    limited = dataclasses.replace(videos, limits=DecodeLimits(decoders=UNTRUSTED_DECODERS))
    with pytest.raises(InvalidMedia, match="a video in one of h264.*, found ffv1"):
        limited.load(path.read_bytes())
    for codec, container in (("libx264", "mp4"), ("libvpx-vp9", "webm"), ("mjpeg", "avi"), ("mpeg4", "mp4")):
        path = tmp_path / f"{codec}.{container}"
        write_clip(path, 64, 64, codec)
        assert len(limited.load(path.read_bytes()).frames), codec


def write_clip(path: Path, width: int, height: int, codec: str = "libx264", frames: int = 16) -> None:
    """Write a clip of one grey."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.width = width
        stream.height = height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index in range(frames):
            pixels = np.full((height, width, 3), 10 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def test_a_playlist_would_open_a_file(videos, whole):
    """With the options for a user's own files, the video is found behind its name: so the test above can fail."""
    playlist = f"ffconcat version 1.0\nfile '{CLIP}'\n".encode()
    options = {"protocol_whitelist": "file", "safe": "0"}
    decoded = decode_video(
        playlist, "it", lambda total, rate, times: videos.indices(total, rate, "it"), DecodeLimits(), options
    )
    assert np.array_equal(decoded.frames, whole.frames)


@pytest.mark.parametrize(
    ("limit", "value", "problem"),
    [
        ("max_source_pixels", 100, "at most 100 pixels a frame"),
        ("max_source_frames", 4, "at most 4 frames"),
        ("max_source_seconds", 0.5, "at most 0.5 seconds"),
        ("max_sampled_pixels", 1000, "of at most 1000 pixels together"),
    ],
)
def test_limits_hold_before_decoding(videos, limit, value, problem):
    """Frames that cannot be decoded show that none has been."""
    content = CLIP.read_bytes()
    start = content.index(b"mdat") + 4
    damaged = content[:start] + bytes(int.from_bytes(content[start - 8 : start - 4], "big") - 8)
    damaged += content[len(damaged) :]
    with pytest.raises(UserError, match="expected a video that can be decoded"):
        videos.load(damaged)
    with pytest.raises(UserError, match=problem):
        dataclasses.replace(videos, limits=DecodeLimits(**{limit: value})).load(damaged)


def test_decoding_ends_in_time(videos):
    with pytest.raises(UserError, match="in time"):
        dataclasses.replace(videos, limits=DecodeLimits(deadline=time.monotonic())).load(CLIP.read_bytes())
    later = DecodeLimits(deadline=time.monotonic() + 600)
    assert len(dataclasses.replace(videos, limits=later).load(CLIP).frames)


def test_formats_of_images():
    images = dataclasses.replace(ImageProcessor.from_folder(MINI), formats=("PNG",))
    for form in ("PNG", "BMP"):
        out = io.BytesIO()
        Image.new("RGB", (40, 40)).save(out, form)
        if form == "PNG":
            assert images.load(out.getvalue()).size == (40, 40)
        else:
            with pytest.raises(UserError, match="messages: expected an image"):
                images.load(out.getvalue(), "messages")


def write_understated(path: Path, width: int, height: int, seconds: int = 30) -> None:
    """Write a clip whose header says 64×64, behind so much sound that probing meets no frame."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mjpeg", rate=8)
        video.width = width
        video.height = height
        video.pix_fmt = "yuvj420p"
        sound = container.add_stream("pcm_s16le", rate=48000, layout="stereo")
        noise = np.random.default_rng(0).integers(-30000, 30000, (1, 96000)).astype(np.int16)
        for second in range(seconds):
            samples = av.AudioFrame.from_ndarray(noise, format="s16", layout="stereo")
            samples.sample_rate = 48000
            samples.pts = second * 48000
            samples.time_base = Fraction(1, 48000)
            container.mux(sound.encode(samples))
        frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 90, np.uint8), format="rgb24")
        for index in range(16):
            frame.pts = seconds * 8 + index
            container.mux(video.encode(frame.reformat(format="yuvj420p")))
        container.mux(video.encode())
    data = bytearray(path.read_bytes())
    entry = data.index(b"jpeg", data.index(b"stsd")) + 28  # of the sample description: width and height, 16 bits each
    assert int.from_bytes(data[entry : entry + 2], "big") == width
    data[entry : entry + 4] = (64).to_bytes(2, "big") * 2
    path.write_bytes(data)
