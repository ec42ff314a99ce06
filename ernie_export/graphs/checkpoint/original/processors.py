"""The original revision's processor settings, translated to those of the hf layout.

The original code has one processor (`Ernie4_5_VLProcessor`) around one image processor for pictures and frames; the
hf layout has a file for each. What is not written has the original classes' default, which is also the
transformers classes'.
"""

from pathlib import Path
from typing import Any

from ernie_export.common.json_fields import JsonObject, read_json
from ernie_export.graphs.checkpoint.original.config import check_fixed
from ernie_export.graphs.config import ErnieConfig

IMAGE_FILE = "preprocessor_config.json"
VIDEO_FILE = "video_preprocessor_config.json"
OPTIONS_FILE = "processor_config.json"
FONT = "Roboto-Regular.ttf"
# Same name and meaning in both files of the hf layout.
SHARED = "do_convert_rgb do_normalize do_rescale do_resize image_mean image_std resample rescale_factor".split()
# Arguments of the original processor and their defaults; they may stand in either of its files.
ARGUMENTS = {
    "image_min_pixels": 56 * 56,
    "image_max_pixels": 28 * 28 * 6177,
    "video_min_pixels": 299 * 28 * 28,
    "video_max_pixels": 1196 * 28 * 28,
    "video_min_frames": 16,
    "video_max_frames": 180,
}
# The converter drops these: the transformers class samples by the minimum and the maximum number of frames alone.
FIXED = {"video_fps": 2, "video_frames_sample": "leading", "video_target_frames": -1, "temporal_conv_size": 2}
CLASSES = {
    "image_processor_type": (
        "Ernie4_5_VLImageProcessor",
        "Ernie_45T_VLImageProcessor",
        "Ernie_45_VLImageProcessor",
    ),
    "processor_class": ("Ernie4_5_VLProcessor", "Ernie_45T_VLProcessor"),
}
WITHOUT_EFFECT = frozenset(
    "auto_map crop_size feature_extractor_type return_tensors "
    # Of the image processor on its own: within the processor, image_min_pixels and so on decide. The converter drops
    # them, too.
    "min_pixels max_pixels size temporal_patch_size".split()
)


def translate_processors(folder: Path, config: ErnieConfig) -> dict[str, dict[str, Any]]:
    """Return the settings of the image and the video processor by file name; raise InvalidFile naming the key."""
    settings = JsonObject(folder / IMAGE_FILE, "", read_json(folder / IMAGE_FILE))
    path = folder / OPTIONS_FILE
    options = JsonObject(path, "", read_json(path) if path.is_file() else {})
    sizes = {"patch_size": config.vision.patch_size, "merge_size": config.vision.spatial_merge_size}
    for key, default in (("patch_size", 14), ("merge_size", 2)):
        if settings.get(key, default) != sizes[key]:
            raise settings.error(key, f"{sizes[key]}, as in config.json", settings.get(key, default))
    fixed = FIXED | {"spatial_conv_size": sizes["merge_size"]}
    given = dict(ARGUMENTS)
    for section in (settings, options):
        for key, names in CLASSES.items():
            if section.get(key, names[0]) not in names:
                raise section.error(key, " or ".join(names), section.get(key))
        check_fixed(section, fixed)
        given |= {key: section.get(key) for key in ARGUMENTS if key in section}
    check_fixed(settings, given)  # the two files agree
    for what in ("image_{}_pixels", "video_{}_pixels", "video_{}_frames"):
        check_bounds(settings, options, what.format("min"), what.format("max"), given)
    shared = {key: settings.get(key) for key in SHARED if key in settings} | sizes
    settings.refuse_unknown(WITHOUT_EFFECT)
    options.refuse_unknown(WITHOUT_EFFECT)
    return {
        IMAGE_FILE: shared
        | {
            "image_processor_type": "Ernie4_5_VLMoeImageProcessor",
            "size": {"shortest_edge": given["image_min_pixels"], "longest_edge": given["image_max_pixels"]},
            "temporal_patch_size": 1,
        },
        VIDEO_FILE: shared
        | {
            "video_processor_type": "Ernie4_5_VLMoeVideoProcessor",
            "size": {"shortest_edge": given["video_min_pixels"], "longest_edge": given["video_max_pixels"]},
            "temporal_patch_size": 2,
            "min_frames": given["video_min_frames"],
            "max_frames": given["video_max_frames"],
            "do_sample_frames": True,
            "draw_on_frames": True,
            "font": FONT,
        },
    }


def check_bounds(settings: JsonObject, options: JsonObject, minimum: str, maximum: str, given: dict[str, Any]) -> None:
    """Raise InvalidFile unless both bounds are positive integers in ascending order."""
    for key in (minimum, maximum):
        section = options if key in options else settings
        if type(given[key]) is not int or given[key] < 1:
            raise section.error(key, "a whole number from 1", given[key])
    if given[minimum] > given[maximum]:
        raise (options if minimum in options else settings).error(
            minimum, f"at most {maximum} {given[maximum]}", given[minimum]
        )
