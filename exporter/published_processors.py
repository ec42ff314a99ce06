"""The original revision's processor settings, translated to the transformers spelling.

The original code has one processor (`Ernie4_5_VLProcessor`) around one image processor for pictures and frames; the
transformers spelling has a file for each. What is not written has the original classes' default, which is also the
transformers classes'.
"""

from pathlib import Path
from typing import Any

from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.json_section import Section, read_json
from ernie_export.graphs.published import check_fixed

IMAGE_FILE = "preprocessor_config.json"
VIDEO_FILE = "video_preprocessor_config.json"
OPTIONS_FILE = "processor_config.json"
FONT = "Roboto-Regular.ttf"
# Same name and meaning in both files of the transformers spelling.
SHARED = "do_convert_rgb do_normalize do_rescale do_resize image_mean image_std resample rescale_factor".split()
IMAGE_BOUNDS = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 6177}
# Arguments of the original processor, which may stand in either of its files.
VIDEO_BOUNDS = {"video_min_pixels": 299 * 28 * 28, "video_max_pixels": 1196 * 28 * 28}
VIDEO_FRAMES = {"video_min_frames": 16, "video_max_frames": 180}
# The converter drops these: the transformers class samples by the least and the greatest number of frames alone.
FIXED = {"video_fps": 2, "video_frames_sample": "leading", "video_target_frames": -1, "temporal_conv_size": 2}
CLASSES = {
    "image_processor_type": ("Ernie4_5_VLImageProcessor", "Ernie_45_VLImageProcessor"),
    "processor_class": ("Ernie4_5_VLProcessor",),
}
WITHOUT_EFFECT = frozenset(
    "auto_map crop_size feature_extractor_type return_tensors "
    "size "  # the original image processor overwrites it with min_pixels and max_pixels
    "temporal_patch_size".split()  # nor does it read this
)


def translate_processors(folder: Path, config: ErnieConfig) -> dict[str, dict[str, Any]]:
    """The settings of the image and of the video processor, by file name; UserError naming file and key."""
    settings = Section(folder / IMAGE_FILE, "", read_json(folder / IMAGE_FILE))
    path = folder / OPTIONS_FILE
    options = Section(path, "", read_json(path) if path.is_file() else {})
    sizes = {"patch_size": config.vision.patch_size, "merge_size": config.vision.spatial_merge_size}
    check_fixed(Section(settings.path, "", {"patch_size": 14, "merge_size": 2} | settings.members), sizes)
    bounds = {key: settings.get(key, default) for key, default in (IMAGE_BOUNDS | sizes).items()}
    check_bounds(settings, "min_pixels", "max_pixels", bounds)
    least, most = bounds["min_pixels"], bounds["max_pixels"]
    fixed = FIXED | {"spatial_conv_size": bounds["merge_size"], "image_min_pixels": least, "image_max_pixels": most}
    video = VIDEO_BOUNDS | VIDEO_FRAMES
    for section in (settings, options):
        for key, names in CLASSES.items():
            if section.get(key, names[0]) not in names:
                raise section.error(key, " or ".join(names), section.get(key))
        check_fixed(section, fixed)
        video |= {key: section.get(key) for key in video if key in section}
    check_fixed(settings, video)  # the two files agree
    check_bounds(settings, "video_min_pixels", "video_max_pixels", video)
    check_bounds(settings, "video_min_frames", "video_max_frames", video)
    shared = {key: settings.get(key) for key in SHARED if key in settings} | sizes
    settings.refuse_unknown(WITHOUT_EFFECT)
    options.refuse_unknown(WITHOUT_EFFECT)
    return {
        IMAGE_FILE: shared | {
            "image_processor_type": "Ernie4_5_VLMoeImageProcessor",
            "size": {"shortest_edge": least, "longest_edge": most},
            "temporal_patch_size": 1,
        },
        VIDEO_FILE: shared | {
            "video_processor_type": "Ernie4_5_VLMoeVideoProcessor",
            "size": {"shortest_edge": video["video_min_pixels"], "longest_edge": video["video_max_pixels"]},
            "temporal_patch_size": 2,
            "min_frames": video["video_min_frames"],
            "max_frames": video["video_max_frames"],
            "do_sample_frames": True,
            "draw_on_frames": True,
            "font": FONT,
        },
    }


def check_bounds(section: Section, least: str, most: str, values: dict[str, Any]) -> None:
    """Refuse bounds that are no whole numbers, or the wrong way round."""
    for key in (least, most):
        if type(values[key]) is not int or values[key] < 1:
            raise section.error(key, "a whole number from 1", values[key])
    if values[least] > values[most]:
        raise section.error(least, f"at most {most} {values[most]}", values[least])
