"""Write conversations about generated scenes, answers included, as `ernie-export --calibrate` takes them.

    python tools/calibration_file.py scratch/scenes.json --count 8 --seed 100

Pictures stand in the file itself; clips lie beside it.
"""

import itertools
import json
from base64 import b64encode
from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import click
from conversations import Message, Part
from heldout import KINDS, heldout
from scenes import Clip

# The others need more than messages: tools, or that a thought is asked for.
MESSAGES_ALONE = tuple(kind for kind in KINDS if kind not in ("thinking", "tools", "renamed-tools"))


def part(given: Part, clips: Iterator[Path]) -> Part:
    """Return a part of a message with its picture in base64, or its clip as the next file of `clips`."""
    if given["type"] == "image":
        buffer = BytesIO()
        given["image"].save(buffer, "PNG")
        return {"type": "image", "base64": b64encode(buffer.getvalue()).decode()}
    if given["type"] == "video":
        path = next(clips)
        write_clip(path, given["video"])
        return {"type": "video", "path": str(path)}
    return given


def turn(given: Message, clips: Iterator[Path]) -> Message:
    """Return a turn with its parts as `part` makes them."""
    content = given["content"]
    return given if isinstance(content, str) else given | {"content": [part(p, clips) for p in content]}


def write_clip(path: Path, clip: Clip) -> None:
    """Write a clip as H.264, one frame a second, so that the processor keeps all of them."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(1), options={"crf": "12"})
        stream.height, stream.width = clip.frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())


def write(path: Path, count: int, seed: int) -> int:
    """Write `count` conversations of each of MESSAGES_ALONE to the file `path`; return how many these are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clips = (path.with_name(f"{path.stem}-{number}.mp4").absolute() for number in itertools.count())
    conversations = []
    for kind in MESSAGES_ALONE:
        for sample in heldout(kind, count, seed):
            turns = [turn(given, clips) for given in sample.messages]
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
