"""Every key of both processors' files, with and without it: the class's bits are ours, or the key is refused.

The keys are those of the classes' keyword arguments, and what other classes and tools write.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision_operators  # noqa: F401
from PIL import Image
from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import (
    Ernie4_5_VLMoeImageProcessorKwargs,
    Ernie4_5_VLMoeImageProcessorPil,
)
from transformers.models.ernie4_5_vl_moe.video_processing_ernie4_5_vl_moe import Ernie4_5_VLMoeVideoProcessorInitKwargs
from transformers.processing_utils import ImagesKwargs, VideosKwargs

from ernie_export.common.errors import InvalidFile
from ernie_export.runtime.preprocess import Preprocessor

DROP = object()
SIZE = {"shortest_edge": 3136, "longest_edge": 12544}
# Values to try; every other key is set to 3.
VALUES: dict[str, tuple[Any, ...]] = {
    "_valid_processor_keys": (["size"],),
    "auto_map": ({"AutoProcessor": "a.B"},),
    "backend": ("pil",),
    "crop_size": ({"height": 56, "width": 56},),
    "data_format": ("channels_last", "channels_first"),
    "default_to_square": (True,),
    "device": ("cpu",),
    "disable_grouping": (True,),
    "do_center_crop": (True, False, None),
    "do_convert_rgb": (False, None),
    "do_normalize": (False, None),
    "do_pad": (True,),
    "do_rescale": (False, None),
    "do_resize": (False, None),
    "do_sample_frames": (False, None),
    "draw_on_frames": (False, None),
    "font": ("Other.ttf",),
    "fps": (2, None),
    "image_mean": ([0.5, 0.4, 0.3], 0.5, None),
    "image_std": ([0.5, 0.4, 0.3], 0.5, None),
    "input_data_format": ("channels_last", "channels_first"),
    "max_frames": (5, None),
    "max_pixels": (7,),
    "merge_size": (1, 2, None),
    "min_frames": (5, None),
    "min_pixels": (7,),
    "model_input_names": (["pixel_values"],),
    "num_frames": (5, 2, None),
    "pad_size": ({"height": 200, "width": 200},),
    "patch_size": (14, 28, None),
    "resample": (0, 1, 2, 3, 4, 5, None),
    "rescale_factor": (0.5, None),
    "return_metadata": (True,),
    "return_tensors": ("np",),
    "size": (
        None,
        {"shortest_edge": 3136, "longest_edge": 6272},
        {"height": 56, "width": 56},
        100,
        {"longest_edge": 9},
    ),
    "temporal_patch_size": (1, 2, 3, None),
    "use_fast": (True, False),
    "video_metadata": ({"fps": 3, "total_num_frames": 9},),
}
FOREIGN = "auto_map backend crop_pct feature_extractor_type frame_factor hidden_stride max_pixels min_pixels "
FOREIGN += "model_input_names offset sharpen total_pixels unsloth_version use_fast _valid_processor_keys"
OWN = {
    "image": {*ImagesKwargs.__annotations__, *Ernie4_5_VLMoeImageProcessorKwargs.__annotations__},
    "video": {*VideosKwargs.__annotations__, *Ernie4_5_VLMoeVideoProcessorInitKwargs.__annotations__},
}
FILES = {"image": "preprocessor_config.json", "video": "video_preprocessor_config.json"}
# Refused although the class answers: other filters for videos, integers from videos, sizes that the model has not.
REFUSED = {(kind, key) for kind in FILES for key in ("merge_size", "patch_size")}
REFUSED |= {("image", "temporal_patch_size"), ("video", "resample"), ("video", "do_rescale"), ("video", "do_normalize")}
# Read although the class refuses it: no font is named, and the class's own lies beside the settings.
READ = {("video", "font"), ("video", "draw_on_frames")}
Arrays = tuple[np.ndarray, ...]


def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)) for shape in ((56, 84, 3), (70, 90), (56, 56, 4))
    ]


def ours(kind: str, folder: Path, clip: Path) -> Arrays:
    processor = Preprocessor.from_folder(folder)
    if kind == "image":
        return processor.images([processor.images.load(picture) for picture in pictures()])
    return processor.videos([processor.videos.load(clip)])


def theirs(kind: str, folder: Path, clip: Path, reference_processor: Callable[[Path], Any]) -> Arrays | str:
    try:
        if kind == "image":
            found = Ernie4_5_VLMoeImageProcessorPil.from_pretrained(folder)(images=pictures(), return_tensors="np")
            return found["pixel_values"], found["image_grid_thw"]
        found = reference_processor(folder).video_processor(videos=[str(clip)], return_tensors="np")
        return np.asarray(found["pixel_values_videos"]), np.asarray(found["video_grid_thw"])
    except Exception as e:
        return f"{type(e).__name__}: {e}"


def variants(kind: str) -> list[tuple[str, Any]]:
    keys = sorted({*OWN[kind], *FOREIGN.split()})
    return [(key, value) for key in keys for value in (*VALUES.get(key, (3,)), DROP)]


@pytest.mark.parametrize("kind", FILES)
def test_every_key_is_honoured_refused_or_without_effect(
    altered: Callable[..., Path],
    write_clip: Callable[..., Path],
    reference_processor: Callable[[Path], Any],
    kind: str,
) -> None:
    clip = write_clip(9, 64, 80)
    folder = altered()
    path = folder / FILES[kind]
    settings = json.loads(path.read_text())
    base = theirs(kind, folder, clip, reference_processor)
    assert not isinstance(base, str), base
    wrong = []
    for key, value in variants(kind):
        changed = {name: old for name, old in settings.items() if name != key}
        if value is not DROP:
            changed[key] = value
        if changed == settings:
            continue
        path.write_text(json.dumps(changed))
        reference = theirs(kind, folder, clip, reference_processor)
        where = f"{key} = {'dropped' if value is DROP else value}"
        try:
            found = ours(kind, folder, clip)
        except InvalidFile as e:
            assert key in str(e) or "font" in str(e), e
            if not isinstance(reference, str) and (kind, key) not in REFUSED:
                wrong.append(f"{where}: refused, and the class answers: {e}")
            continue
        except Exception as e:
            if not isinstance(reference, str):
                wrong.append(f"{where}: {e}, and the class answers")
            continue
        if isinstance(reference, str) and value is DROP and (kind, key) in READ:
            continue
        if isinstance(reference, str):
            wrong.append(f"{where}: accepted, and the class says {reference[:120]}")
        elif not all(np.array_equal(a, b) for a, b in zip(found, reference, strict=True)):
            wrong.append(f"{where}: another result than the class's")
    assert not wrong, "\n".join(wrong)
