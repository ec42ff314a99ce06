"""The conversations that ernie-verify compares: text alone, one picture, two of unequal size, a clip, and all together.

Pictures are drawn from a seed, so that a report can be repeated.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ernie_export.runtime import messages_file
from ernie_export.runtime.messages_file import Messages


def read_conversations(path: Path) -> dict[str, Messages]:
    """Return the conversations of a file as `ernie-run --messages` takes it, named by file and number."""
    document = messages_file.read(path)
    conversations = [document] if isinstance(document[0], dict) else document
    return {f"{path.name} [{number}]": messages for number, messages in enumerate(conversations)}


def ask(text: str, *media: dict[str, Any]) -> Messages:
    """Return a conversation of one question about media."""
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]


TEXT = ask("What do you see, and where is it?")


def example_conversations(quick: bool = False) -> dict[str, Messages]:
    """Return one conversation of each kind, or with `quick` of text and of all media together.

    Images are coarse random tiles, for plain noise has no features.
    """
    rng = np.random.default_rng(0)

    def picture(height: int, width: int) -> Image.Image:
        tiles = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3), np.uint8)
        return Image.fromarray(tiles).resize((width, height), Image.Resampling.NEAREST)

    def image(height: int, width: int) -> dict[str, Any]:
        return {"type": "image", "image": picture(height, width)}

    def clip() -> dict[str, Any]:
        return {"type": "video", "video": [picture(96, 128) for _ in range(4)], "fps": 2}

    conversations = {
        "text": TEXT,
        "one picture": ask("What is in the picture?", image(120, 160)),
        "two unequal pictures": ask("Which one is brighter?", image(84, 140), image(168, 112)),
        "a clip": ask("What happens?", clip()),
        "pictures and a clip": ask("Compare them.", image(60, 60), clip(), image(100, 60)),
    }
    return {name: conversations[name] for name in ("text", "pictures and a clip")} if quick else conversations
