"""Media decoded in worker processes: as in this process, and ended whatever a file does."""

import dataclasses
import io
import math
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ernie_export.common.errors import InvalidMedia
from ernie_export.runtime.preprocess.image import ImageProcessor
from ernie_export.runtime.preprocess.video import VideoProcessor
from ernie_export.runtime.serving.media_pool import Cancelled, MediaPool, PooledDecoder
from tests.paths import MEDIA, MINI

MEMORY = 2 * 2**30


@pytest.fixture(scope="module")
def images():
    return ImageProcessor.from_folder(MINI)


@pytest.fixture(scope="module")
def videos():
    return VideoProcessor.from_folder(MINI)


@pytest.fixture(scope="module")
def pool():
    started = MediaPool(MINI, workers=1, memory=MEMORY)
    started.start()
    yield started
    started.close()


@pytest.fixture
def decoder(pool, images, videos):
    return PooledDecoder(
        pool=pool,
        images=images,
        videos=videos,
        image_seconds=30.0,
        video_seconds=30.0,
        deadline=math.inf,
        cancelled=lambda: False,
    )


def slow_jpeg(side: int = 2000, scans: int = 3000) -> bytes:
    """A progressive JPEG whose last scan stands in it thousands of times: seconds to hours of decoding."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 120).save(buffer, "JPEG", progressive=True, quality=30)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def workers_of(pool: MediaPool) -> list[int]:
    return [worker._process.pid for worker in pool._running]


def test_an_image_is_decoded_as_in_this_process(decoder, images):
    for path in (MEDIA / "shapes.png", MEDIA / "many.jpg"):
        assert np.array_equal(decoder.image(path.read_bytes(), "it"), images.decode(path))


def test_a_video_is_decoded_as_in_this_process(decoder, videos):
    path = MEDIA / "passing.mp4"
    assert np.array_equal(decoder.video(path.read_bytes(), None, "it"), videos.decode(path))


@pytest.mark.parametrize("data", [b"", b"no image", (MEDIA / "many.jpg").read_bytes()[:500]])
def test_refusals_are_those_of_this_process(decoder, images, data):
    with pytest.raises(InvalidMedia) as here:
        images.decode(data, "messages[0].content[1]")
    with pytest.raises(InvalidMedia) as there:
        decoder.image(data, "messages[0].content[1]")
    assert str(there.value) == str(here.value) and there.value.field == "messages[0].content[1]"


def test_limits_of_the_request_hold(decoder):
    limited = dataclasses.replace(decoder, images=dataclasses.replace(decoder.images, max_source_pixels=100))
    with pytest.raises(InvalidMedia, match="at most 100 pixels"):
        limited.image((MEDIA / "shapes.png").read_bytes(), "it")


def test_a_worker_serves_many_files(pool, decoder):
    before = workers_of(pool)
    for _ in range(3):
        decoder.image((MEDIA / "shapes.png").read_bytes(), "it")
    assert workers_of(pool) == before


def test_what_takes_too_long_is_ended(pool, decoder):
    """And the next file is decoded by a new worker."""
    (slow,) = workers_of(pool)
    started = time.monotonic()
    with pytest.raises(InvalidMedia, match="it: expected media that can be decoded in time"):
        dataclasses.replace(decoder, image_seconds=0.5).image(slow_jpeg(), "it")
    assert time.monotonic() - started < 10
    decoder.image((MEDIA / "shapes.png").read_bytes(), "it")
    assert slow not in workers_of(pool) and not os.path.exists(f"/proc/{slow}")


def test_a_client_that_leaves_ends_the_work(pool, decoder):
    (slow,) = workers_of(pool)
    gone = time.monotonic() + 0.5
    with pytest.raises(Cancelled):
        dataclasses.replace(decoder, cancelled=lambda: time.monotonic() > gone).image(slow_jpeg(), "it")
    assert not os.path.exists(f"/proc/{slow}")


def test_memory_is_bounded(images, videos):
    """A picture within the limit of pixels, in a form that takes more memory than the worker has."""
    buffer = io.BytesIO()
    Image.new("RGBA", (9000, 9000)).save(buffer, "PNG", compress_level=1)
    pool = MediaPool(MINI, workers=1, memory=700 * 2**20)
    try:
        decoder = PooledDecoder(pool, images, videos, 60.0, 60.0, math.inf, lambda: False)
        with pytest.raises(InvalidMedia) as refused:
            decoder.image(buffer.getvalue(), "it")
        assert (
            str(refused.value)
            == "it: expected media that can be decoded in 0.684 GiB of memory, found that more is needed"
        )
        assert decoder.image((MEDIA / "shapes.png").read_bytes(), "it").shape[0] == 1
    finally:
        pool.close()


def test_closing_ends_what_is_being_decoded(images, videos):
    pool = MediaPool(MINI, workers=2, memory=MEMORY)
    pool.start()
    pids = workers_of(pool)
    pool.close()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    with pytest.raises(Cancelled):
        PooledDecoder(pool, images, videos, 1.0, 1.0, math.inf, lambda: False).image(b"x", "it")


def test_a_path_is_not_read(decoder):
    with pytest.raises(InvalidMedia, match="expected the bytes of a file"):
        decoder.image(MEDIA / "shapes.png", "it")


def test_closing_while_a_file_is_decoded_ends_the_waiting_thread(images, videos):
    """The thread meets the end of its worker's pipe. (Whether closing races with its wait, no test can hold.)"""
    pool = MediaPool(MINI, workers=1, memory=MEMORY)
    decoder = PooledDecoder(pool, images, videos, 60.0, 60.0, math.inf, lambda: False)
    with ThreadPoolExecutor(1) as threads:
        decoding = threads.submit(decoder.image, slow_jpeg(), "it")
        while not workers_of(pool):
            time.sleep(0.01)
        time.sleep(2)
        pool.close()
        with pytest.raises(Cancelled):
            decoding.result(timeout=10)


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGKILL])
def test_a_worker_that_ends_by_itself_is_replaced_and_its_memory_named(pool, decoder, number):
    """Libraries abort where they find no memory, or write where they have none; the system kills where it has none."""
    decoder.image((MEDIA / "shapes.png").read_bytes(), "it")
    (pid,) = workers_of(pool)
    threading.Timer(1, os.kill, (pid, number)).start()
    with pytest.raises(InvalidMedia) as refused:
        decoder.image(slow_jpeg(), "it")
    found = f"found that the decoder ended ({number.name})"
    assert str(refused.value) == f"it: expected media that can be decoded in 2 GiB of memory, {found}"
    assert decoder.image((MEDIA / "shapes.png").read_bytes(), "it").shape[0] == 1
    assert workers_of(pool) != [pid]
