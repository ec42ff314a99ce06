"""Write conversations about generated scenes, answers included, as `ernie-export --calibrate` takes them.

    python tools/calibration_file.py scratch/scenes.json --count 8 --seed 100

Pictures stand in the file itself; clips lie beside it.
"""

import json
from base64 import b64encode
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from scenes import KINDS, heldout


def part(given: dict[str, Any], clip: Path) -> dict[str, Any]:
    """A part of a message with its picture in base64, or its clip as a file: one frame a second, all of them kept."""
    if given["type"] == "image":
        buffer = BytesIO()
        given["image"].save(buffer, "PNG")
        return {"type": "image", "base64": b64encode(buffer.getvalue()).decode()}
    if given["type"] == "video":
        write_clip(clip, given["video"].frames)
        return {"type": "video", "path": str(clip)}
    return given


def write_clip(path: Path, frames: np.ndarray) -> None:
    """Frames (n, height, width, 3) uint8 as H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(1), options={"crf": "12"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())


def write(path: Path, count: int, seed: int) -> int:
    """`count` conversations of each kind of question into the file `path`; returns how many these are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    conversations = []
    for kind in KINDS:
        for number, sample in enumerate(heldout(kind, count, seed)):
            clip = path.with_name(f"{path.stem}-{kind}-{number}.mp4").absolute()
            turns = [turn | {"content": [part(given, clip) for given in turn["content"]]} for turn in sample.messages]
            conversations.append([*turns, {"role": "assistant", "content": sample.answer}])
    path.write_text(json.dumps(conversations))
    return len(conversations)


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--count", default=8, show_default=True, help="Conversations of each kind.")
@click.option("--seed", default=100, show_default=True, help="0 and 1 are those that accuracy is measured on.")
def main(path: Path, count: int, seed: int) -> None:
    """Write PATH."""
    print(f"{path}: {write(path, count, seed)} conversations")


if __name__ == "__main__":
    main()
