"""Images and videos that come as bytes from outside: as from a file, and from nothing but their own data."""

import dataclasses
import io
import time

import numpy as np
import pytest
from PIL import Image

from ernie_export.common.errors import UserError
from ernie_export.runtime.preprocess import ImageProcessor, VideoProcessor
from ernie_export.runtime.preprocess.video_decode import DecodeLimits, decode_video
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
def test_a_playlist_opens_no_file(videos, playlist):
    with pytest.raises(UserError, match="the clip: expected a video that can be decoded, found Invalid"):
        videos.load(playlist.encode(), name="the clip")


def test_a_playlist_would_open_a_file(videos, whole):
    """With the options for a user's own files, the video is found behind its name: so the test above can fail."""
    playlist = f"ffconcat version 1.0\nfile '{CLIP}'\n".encode()
    options = {"protocol_whitelist": "file", "safe": "0"}
    decoded = decode_video(
        playlist, "it", lambda total, rate: videos.indices(total, rate, "it"), DecodeLimits(), options
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
