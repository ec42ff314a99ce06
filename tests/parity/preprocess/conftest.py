"""The reference's processor, read from the same folder as ours, and folders with other settings."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.paths import MINI

FILES = {
    "image": "preprocessor_config.json",
    "video": "video_preprocessor_config.json",
    "tokenizer": "tokenizer_config.json",
    "tokenizer_file": "tokenizer.json",
    "model": "config.json",
}
OTHER_FILES = ("chat_template.jinja", "Roboto-Regular.ttf")


@pytest.fixture(scope="session")
def mini() -> Path:
    """The small checkpoint of the repository."""
    return MINI


@pytest.fixture
def altered(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the mini checkpoint's processor files with keys of its settings replaced (None drops a key)."""

    def copy(**files: dict[str, Any]) -> Path:
        folder = tmp_path / f"checkpoint{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name in (*FILES.values(), *OTHER_FILES):
            shutil.copy(MINI / name, folder / name)
        for key, changes in files.items():
            path = folder / FILES[key]
            values = json.loads(path.read_text()) | changes
            path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
        return folder

    return copy


@pytest.fixture(scope="session")
def reference_processor() -> Callable[[Path], Any]:
    """`Ernie4_5_VLMoeProcessor` of a folder, with the PIL image processor and videos decoded by PyAV.

    (5.23 would decode with torchcodec; its own `load_video` with the processor's sampling is the same but for that.)
    """
    from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import Ernie4_5_VLMoeImageProcessorPil
    from transformers.models.ernie4_5_vl_moe.processing_ernie4_5_vl_moe import Ernie4_5_VLMoeProcessor
    from transformers.video_utils import load_video

    def fetch(videos: Any, sample_indices_fn: Any = None) -> Any:
        if isinstance(videos, list):
            return list(zip(*[fetch(video, sample_indices_fn) for video in videos], strict=True))
        return load_video(videos, backend="pyav", sample_indices_fn=sample_indices_fn)

    def build(folder: Path) -> Any:
        processor = Ernie4_5_VLMoeProcessor.from_pretrained(folder)
        processor.image_processor = Ernie4_5_VLMoeImageProcessorPil.from_pretrained(folder)
        processor.video_processor.fetch_videos = fetch
        return processor

    return build


@pytest.fixture
def write_clip(tmp_path: Path) -> Callable[..., Path]:
    """Encode a clip of moving coloured blocks: `write_clip(frames, height, width, rate, codec, name)`."""

    def write(
        frames: int,
        height: int,
        width: int,
        rate: Any = 10,
        codec: str = "mpeg4",
        name: str = "clip.mp4",
        **options: str,
    ) -> Path:
        path = tmp_path / name
        rng = np.random.default_rng(frames * height * width)
        blocks = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        picture = blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=rate)
            assert isinstance(stream, av.VideoStream)
            stream.width = width
            stream.height = height
            stream.pix_fmt = "yuv420p"
            for index in range(frames):
                frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * index, axis=1), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write
