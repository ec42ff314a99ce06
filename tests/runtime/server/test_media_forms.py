"""Images and videos in the forms in which clients and devices write them: read, or refused by which one and why."""

import io

import openai
import pytest
from PIL import Image

from tests.paths import CASES
from tests.runtime.preprocess.test_inline_media import FORMS, PICTURE


def image(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def video(url: str) -> dict:
    return {"type": "video_url", "video_url": {"url": url}}


def ask(client, *parts):
    content = [*parts, {"type": "text", "text": "How many shapes are there?"}]
    return client.chat.completions.create(model="mini", messages=[{"role": "user", "content": content}])


def refusal(client, *parts) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, *parts)
    assert len(refused.value.message) < 400
    return refused.value


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_base64_is_read(client, alone, form):
    content = [{"type": "image", "image": PICTURE}, {"type": "text", "text": "How many shapes are there?"}]
    expected = alone.generate([{"role": "user", "content": content}])
    answer = ask(client, image(FORMS[form]))
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.prompt_tokens == expected.prompt_tokens


def encoded(form: str, size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size).save(out, form)
    return out.getvalue()


@pytest.mark.parametrize("form", ["AVIF", "TIFF", "JPEG2000"])
def test_a_format_that_is_not_offered_is_refused_with_those_that_are(client, data_uri, form):
    error = refusal(client, image(data_uri(encoded(form, (60, 60)))))
    assert error.param == "messages.0.content.0"
    assert "expected an image (PNG, JPEG, WEBP, GIF, BMP), found a file of another format" in error.message


def test_the_picture_at_fault_is_named_with_what_is_wrong(client, data_uri):
    error = refusal(client, image(data_uri(PICTURE)), image(data_uri(encoded("PNG", (1, 201)))))
    assert error.param == "messages.0.content.1"
    assert "messages[0].content[1]: expected an aspect ratio of at most 200, found 1×201" in error.message


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("trunc.webm", "the video is truncated"),
        ("raw.h264", "found a file of another format"),
        ("cover.mp3", "found a file of another format"),
    ],
)
def test_what_is_no_whole_clip_says_so(client, data_uri, name, found):
    error = refusal(client, video(data_uri((CASES / name).read_bytes(), "video")))
    assert error.param == "messages.0.content.0" and found in error.message
