"""Pixels and frames under the control of a request, within the bundle's own bounds."""

from pathlib import Path
from typing import Any

import openai
import pytest

from tests.paths import MEDIA


def ask(client, data_uri, kind: str, name: str, body: dict[str, Any] | None = None, **link: Any):
    url = {"url": data_uri(Path(MEDIA, name).read_bytes(), kind), **link}
    parts = [{"type": f"{kind}_url", f"{kind}_url": url}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": parts}]
    answer = client.chat.completions.create(model="mini", messages=messages, max_tokens=1, extra_body=body)
    return answer.usage.prompt_tokens_details.model_extra["media"][0]


def pixels(medium: dict[str, Any], patch: int = 14) -> int:
    _, height, width = medium["grid"]
    return height * width * patch * patch


@pytest.mark.parametrize(
    "options",
    [
        {"max_pixels": 6000},
        {"size": {"longest_edge": 6000}},
        {"min_pixels": 100, "max_pixels": 6000},
    ],
)
def test_fewer_pixels_make_fewer_tokens(client, data_uri, options):
    whole = ask(client, data_uri, "image", "shapes.png")
    small = ask(client, data_uri, "image", "shapes.png", {"mm_processor_kwargs": options})
    assert pixels(small) <= 6000 < pixels(whole) and small["tokens"] < whole["tokens"]


def test_more_pixels_end_at_the_bundles_own(client, data_uri, alone):
    bounds = alone.preprocessor.images.settings.bounds
    large = ask(client, data_uri, "image", "shapes.png", {"mm_processor_kwargs": {"min_pixels": 2**35}})
    assert pixels(ask(client, data_uri, "image", "shapes.png")) <= pixels(large) <= bounds.maximum
    least = ask(client, data_uri, "image", "shapes.png", {"mm_processor_kwargs": {"max_pixels": 1}})
    assert pixels(least) >= bounds.minimum * 0.9


def test_detail_low_has_fewer_pixels_where_there_are_many(client, data_uri, alone):
    whole = [ask(client, data_uri, "image", "many.jpg", detail=detail) for detail in ("auto", "high")]
    low = ask(client, data_uri, "image", "many.jpg", detail="low")
    assert whole[0] == whole[1] == ask(client, data_uri, "image", "many.jpg")
    assert pixels(low) <= 512 * 512
    assert low["tokens"] < whole[0]["tokens"] or pixels(whole[0]) <= 512 * 512


@pytest.mark.parametrize(
    ("body", "most"),
    [
        ({"media_io_kwargs": {"video": {"num_frames": 4}}}, 4),
        ({"mm_processor_kwargs": {"num_frames": 4}}, 4),
        ({"media_io_kwargs": {"video": {"fps": 1, "num_frames": 4}}}, 4),
    ],
)
def test_fewer_frames_of_a_video(client, data_uri, body, most):
    whole = ask(client, data_uri, "video", "passing.mp4")
    few = ask(client, data_uri, "video", "passing.mp4", body)
    assert few["grid"][0] <= most < whole["grid"][0] and few["tokens"] < whole["tokens"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"mm_processor_kwargs": {"max_pixels": 0}}, "mm_processor_kwargs.max_pixels"),
        ({"mm_processor_kwargs": {"min_pixels": 9, "max_pixels": 5}}, "mm_processor_kwargs.min_pixels"),
        ({"mm_processor_kwargs": {"num_crops": 4}}, "mm_processor_kwargs.num_crops"),
        ({"media_io_kwargs": {"video": {"num_frames": 10**6}}}, "media_io_kwargs.video.num_frames"),
        ({"media_io_kwargs": {"video": {"fps": -1}}}, "media_io_kwargs.video.fps"),
        ({"media_io_kwargs": {"audio": {}}}, "media_io_kwargs.audio"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client, data_uri, body, param):
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, data_uri, "video", "passing.mp4", body)
    assert refusal.value.param == param
