"""Faults of the files of preprocessing, and of what the runtime computes from them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from ernie_export.runtime.preprocess import Prepared, Preprocessor
from tools.faults.fault import Fault, Planted


def changed_json(name: str, change: Callable[[Any, np.random.Generator], str]) -> Any:
    """Return a fault: a JSON file of the bundle is changed; `change` returns where."""

    def plant(bundle: Path, rng: np.random.Generator) -> Planted:
        document = json.loads((bundle / name).read_text())
        place = change(document, rng)
        (bundle / name).write_text(json.dumps(document, indent=2, ensure_ascii=False))
        return Planted(place, f"{name}: expected the checkpoint's file")

    return plant


def exchanged_pieces(document: Any, rng: np.random.Generator) -> str:
    """Exchange two pieces of the tokenizer's vocabulary."""
    vocabulary = document["model"]["vocab"]
    first, second = rng.choice(sorted(vocabulary), 2, replace=False)
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    return f"{first}, {second}"


def no_timestamps(document: Any, rng: np.random.Generator) -> str:
    """Draw no timestamp on frames."""
    document["draw_on_frames"] = False
    return "draw_on_frames"


def other_mean(document: Any, rng: np.random.Generator) -> str:
    """Normalise one channel by another mean."""
    channel = int(rng.integers(3))
    document["image_mean"][channel] += 0.05
    return f"image_mean[{channel}]"


def other_template(bundle: Path, rng: np.random.Generator) -> Planted:
    """Render conversations with another template."""
    path = bundle / "chat_template.jinja"
    path.write_text(path.read_text().replace("Assistant", "assistant") + "\n")
    return Planted("", "chat_template.jinja: expected the checkpoint's file")


def positions_after(kind: str) -> Callable[[Path, np.random.Generator], Planted]:
    """Return a fault: text after the first image or video has positions that are one too high."""

    @contextmanager
    def during() -> Iterator[None]:
        prepare = Preprocessor.prepare

        def wrong(self: Preprocessor, *arguments: Any, **named: Any) -> Prepared:
            prepared = prepare(self, *arguments, **named)
            ends = [item.tokens.stop for item in prepared.items if item.kind == kind]
            positions = prepared.position_ids.copy()
            if ends:
                positions[:, :, ends[0] :] += 1
            return replace(prepared, position_ids=positions)

        with mock.patch.object(Preprocessor, "prepare", wrong):
            yield

    # What follows a picture may be another picture: then its positions are too high as well.
    sentence = (
        "layer 0 attention is the first that differs: (text after images or videos alone: its positions|images and)"
    )
    return lambda bundle, rng: Planted(kind, sentence, during)


RUNTIME = (
    Fault("a tokenizer of another model", "files", changed_json("tokenizer.json", exchanged_pieces)),
    Fault("a template of another model", "files", other_template),
    Fault("a missing timestamp", "files", changed_json("video_preprocessor_config.json", no_timestamps)),
    Fault("another mean of pixels", "files", changed_json("preprocessor_config.json", other_mean)),
    Fault("positions off by one after an image", "runtime", positions_after("image")),
    Fault("positions off by one after a clip", "runtime", positions_after("video")),
)
