"""The mini checkpoint's processor files, and copies of them with other settings."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.paths import MINI

FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json",
    "video_preprocessor_config.json", "Roboto-Regular.ttf",
)  # fmt: skip


@pytest.fixture(scope="session")
def mini() -> Path:
    return MINI


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy to break."""
    copy = tmp_path / "checkpoint"
    copy.mkdir()
    for name in FILES:
        shutil.copy(MINI / name, copy / name)
    return copy


@pytest.fixture
def change(folder: Path) -> Callable[..., None]:
    """change(file, key=value, ...) in that copy; "absent" removes a key."""

    def edit(name: str, **changes: Any) -> None:
        values = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({k: v for k, v in values.items() if v != "absent"}))

    return edit


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten frames of 48×32, the index first so that a cut in the middle leaves a readable header."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = 48
        stream.height = 32
        stream.pix_fmt = "yuv420p"
        for index in range(10):
            picture = np.full((32, 48, 3), 25 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
