"""What messages from outside may name: data URIs, and files of one folder through no way out of it."""

import base64
import json
import os

import pytest

from ernie_export.common.errors import InvalidMedia, UserError
from ernie_export.runtime.preprocess.inline_media import BASE64_PIECE, decode_base64
from ernie_export.runtime.serving.untrusted_media import _read_file, confine, count_media

DATA = base64.b64encode(b"bytes").decode()


@pytest.fixture
def folder(tmp_path):
    """media/a.png and media/sub/b.mp4; beside them secret.png, and links from media to it and to all there is."""
    media = tmp_path / "media"
    (media / "sub").mkdir(parents=True)
    for path in (media / "a.png", media / "sub" / "b.mp4", tmp_path / "secret.png"):
        path.write_bytes(b"x")
    (media / "link.png").symlink_to(tmp_path / "secret.png")
    (media / "inside.png").symlink_to("a.png")
    (media / "root").symlink_to("/")
    (media / "circle").symlink_to("circle")
    return media


def one(kind, **source):
    return [{"role": "user", "content": [{"type": kind} | source, {"type": "text", "text": "What is it?"}]}]


def confined(messages, folder):
    """The source of the one picture or clip."""
    before = json.dumps(messages)
    (message,) = confine(messages, folder)
    assert json.dumps(messages) == before, "the messages given are left as they are"
    assert count_media([message]) == 1
    (source,) = [value for key, value in message["content"][0].items() if key != "type"]
    return source


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("allowed", [True, False])
def test_data_uris_become_bytes(kind, allowed, folder):
    messages = one(kind, url=f"data:{kind}/x;base64,{DATA}")
    assert confined(messages, folder if allowed else None) == b"bytes"


def test_a_folder_exchanged_for_a_link_leads_nowhere(folder, tmp_path):
    """Between the check of a path and its opening: the link stands there already when the file is opened."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "b.mp4").write_bytes(b"secret")
    assert _read_file(folder / "sub" / "b.mp4", folder, 100) == b"x"
    (folder / "sub").rename(folder / "moved")
    (folder / "sub").symlink_to(outside)
    with pytest.raises(FileNotFoundError):
        _read_file(folder / "sub" / "b.mp4", folder, 100)


def test_a_pipe_in_place_of_a_file_is_not_read(folder):
    os.mkfifo(folder / "pipe.mp4")
    with pytest.raises(FileNotFoundError):
        _read_file(folder / "pipe.mp4", folder, 100)


@pytest.mark.parametrize(
    "size", [0, 1, 2, 3, 4, BASE64_PIECE // 4 * 3 - 1, BASE64_PIECE // 4 * 3, 2 * BASE64_PIECE + 1]
)
def test_base64_in_pieces(size):
    data = bytes(i % 251 for i in range(size))
    assert decode_base64(base64.b64encode(data).decode()) == data


def test_base64_that_goes_on_after_its_padding():
    padded = "A" * (BASE64_PIECE - 2) + "=="
    with pytest.raises(ValueError, match="data after the padding"):
        decode_base64(padded + "AAAA")
    for text in ("AA==AA==", "A", "A" * BASE64_PIECE + "A", "AA!A", "é" * 4):
        with pytest.raises(ValueError):
            decode_base64(text)


def test_base64_and_image_url_become_bytes():
    assert confined(one("image", base64=DATA), None) == b"bytes"
    assert confined(one("image_url", image_url={"url": f"data:image/png;base64,{DATA}"}), None) == b"bytes"


@pytest.mark.parametrize("path", ["a.png", "./sub/../a.png", "sub/b.mp4", "inside.png"])
def test_files_of_the_folder(path, folder):
    content = (folder / path).read_bytes()
    assert content and confined(one("video", path=path), folder) == content
    assert confined(one("image", url=str(folder / path)), folder) == content


def test_a_file_is_read_up_to_the_limit(folder):
    (folder / "a.png").write_bytes(b"x" * 101)
    assert len(confine(one("image", path="a.png"), folder, 101)[0]["content"][0]["path"]) == 101
    with pytest.raises(InvalidMedia, match="expected a file of at most 100 bytes, found a larger one"):
        confine(one("image", path="a.png"), folder, 100)


def test_a_pipe_in_the_folder_is_not_waited_for(folder):
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(InvalidMedia, match="expected a data URI or a path in the folder of media"):
        confine(one("image", path="pipe.png"), folder)


OUTSIDE = ["../secret.png", "link.png", "root/etc/passwd", "/etc/passwd", "none.png", "sub", "", ".", "circle", "a\0"]
OUTSIDE += ["file:///etc/passwd", "http://127.0.0.1/a.png", "x" * 5000, "~/a.png"]


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: repr(path)[:20])
def test_other_files_are_refused_whether_they_exist_or_not(path, folder):
    with pytest.raises(UserError) as caught:
        confine(one("image", path=path), folder)
    expected = "messages[0].content[0].path: expected a data URI or a path in the folder of media, found "
    assert str(caught.value) == expected + repr(path[:80])


@pytest.mark.parametrize("path", ["a.png", "/etc/passwd"])
def test_without_a_folder_every_path_is_refused(path):
    with pytest.raises(UserError, match=r"content\[0\].path: expected a data URI, found"):
        confine(one("video", path=path), None)


@pytest.mark.parametrize("source", [["/etc/passwd"], {"path": "/etc/passwd"}, 3, True])
def test_what_is_no_text_is_refused(source, folder):
    with pytest.raises(UserError, match=r"content\[0\].video: expected a data URI .*, found (list|dict|int|bool)"):
        confine(one("video", video=source), folder)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("data:image/png,", "expected a data URI or base64, found no data"),
        ("data:image/png;base64,a", "expected a data URI or base64, found"),
        ("data:image/png;base64,ä", "expected a data URI or base64, found"),
    ],
)
def test_malformed_data_is_refused(uri, expected):
    with pytest.raises(UserError) as caught:
        confine(one("image", url=uri), None)
    assert str(caught.value).startswith(f"messages[0].content[0].url: {expected}")


def test_the_files_of_a_request_count_together(tmp_path):
    """A few bytes may name one large file many times."""
    (tmp_path / "picture.png").write_bytes(bytes(600))
    one = {"type": "image", "path": "picture.png"}
    assert confine([{"role": "user", "content": [one]}], tmp_path, 1000)
    with pytest.raises(InvalidMedia, match=r"content\[1\].path: expected a file of at most 400 bytes"):
        confine([{"role": "user", "content": [one, one]}], tmp_path, 1000)
