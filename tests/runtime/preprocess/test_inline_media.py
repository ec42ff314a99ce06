"""Every form in which an image or a video stands in a text is read; what is none of them is named shortly."""

import base64
import textwrap
from urllib.parse import quote, quote_from_bytes

import pytest

from ernie_export.common.errors import InvalidValue, UserError
from ernie_export.runtime.preprocess import Preprocessor
from ernie_export.runtime.preprocess.inline_media import inline_bytes
from ernie_export.runtime.preprocess.messages import media
from tests.paths import MEDIA, MINI

PICTURE = (MEDIA / "few.png").read_bytes()
BASE64 = base64.b64encode(PICTURE).decode()
FORMS = {
    "a data URI": f"data:image/png;base64,{BASE64}",
    "without a type": f"data:;base64,{BASE64}",
    "of any type": f"data:application/octet-stream;base64,{BASE64}",
    "with parameters": f"data:image/png;name=a.png;base64,{BASE64}",
    "in capitals": f"DATA:IMAGE/PNG;BASE64,{BASE64}",
    "percent-encoded": f"data:image/png,{quote_from_bytes(PICTURE)}",
    "base64 percent-encoded": f"data:image/png;base64,{quote(BASE64, safe='')}",
    "wrapped": f"data:image/png;base64,{chr(10).join(textwrap.wrap(BASE64, 76))}",
    "raw": BASE64,
    "raw and wrapped": "\r\n".join(textwrap.wrap(BASE64, 76)) + "\n",
    "raw without padding": BASE64.rstrip("="),
    "raw for URLs": base64.urlsafe_b64encode(PICTURE).decode(),
}


@pytest.mark.parametrize("key", ["image", "url", "path", "base64"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_under_every_key(form: str, key: str) -> None:
    part = {"type": "image", key: FORMS[form]}
    assert media([{"role": "user", "content": [part]}]).images == (PICTURE,)


def test_a_clip_too() -> None:
    clip = (MEDIA / "passing.mp4").read_bytes()
    for text in (base64.b64encode(clip).decode(), f"data:video/mp4;base64,{base64.b64encode(clip).decode()}"):
        assert media([{"role": "user", "content": [{"type": "video", "url": text}]}]).videos == (clip,)


@pytest.mark.parametrize("text", ["photo.png", "/home/me/" + 40 * "a", 64 * "A", "file:///a.png", "ä" * 50])
def test_a_path_is_none_of_them(text: str) -> None:
    assert inline_bytes(text) is None


@pytest.mark.parametrize(
    "text", ["data:image/png;base64,!!!!", "data:image/png", "data:;base64,", "data:image/png;base64,A"]
)
def test_a_damaged_one_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"messages\[0\].content\[0\].url: expected a data URI or base64"):
        media([{"role": "user", "content": [{"type": "image", "url": text}]}])


def test_what_cannot_be_read_is_named_shortly() -> None:
    for text in (10_000 * "A", "http://" + 10_000 * "a"):
        with pytest.raises(UserError) as refused:
            Preprocessor.from_folder(MINI)([{"role": "user", "content": [{"type": "image", "url": text}]}])
        assert len(str(refused.value)) <= 200


@pytest.mark.parametrize("address", ["file://{}", "file://localhost{}", "file:{}", "FILE://{}"])
def test_file_addresses(address: str) -> None:
    part = {"type": "image", "url": address.format(MEDIA / "few.png")}
    assert media([{"role": "user", "content": [part]}]).images == (MEDIA / "few.png",)
