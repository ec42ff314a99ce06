"""Messages of a wrong shape, templates that misbehave, placeholders and media that do not agree: one line each."""

import base64
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ernie_export.common.errors import ContextLengthExceeded, UserError
from ernie_export.runtime.preprocess import Preprocessor
from ernie_export.runtime.preprocess.chat import ChatProcessor
from ernie_export.runtime.preprocess.messages import media, normalise
from ernie_export.runtime.preprocess.video import SampledVideo

PICTURE = Image.new("RGB", (56, 56), "red")
FRAMES = np.zeros((2, 30, 30, 3), np.uint8)


@pytest.fixture(scope="module")
def chat(mini: Path) -> ChatProcessor:
    return ChatProcessor.from_folder(mini)


@pytest.fixture(scope="module")
def preprocessor(mini: Path) -> Preprocessor:
    return Preprocessor.from_folder(mini)


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts]}]


IMAGE = {"type": "image", "image": PICTURE}
TEXT = {"type": "text", "text": "what?"}

MALFORMED = {
    "no-list": ("hello", "messages: expected a list of messages, found str"),
    "one-message": ({"role": "user", "content": "x"}, "messages: expected a list of messages, found dict"),
    "none": ([], "messages: expected at least one message"),
    "no-message": (["hello"], "messages[0]: expected"),
    "no-role": ([{"content": "x"}], "one of system, user, assistant, tool, found no such key"),
    "wrong-role": ([{"role": "usr", "content": "x"}], "messages[0].role: expected one of system, user, assistant"),
    "no-content": ([{"role": "user"}], "messages[0].content: expected text or a list of parts, found no such key"),
    "null-content": ([{"role": "user", "content": None}], "messages[0].content: expected text"),
    "wrong-content": (
        [{"role": "user", "content": 3}],
        "messages[0].content: expected text or a list of parts, found 3",
    ),
    "object-content": ([{"role": "user", "content": {"type": "text"}}], "messages[0].content: expected text or a list"),
    "text-for-part": (user("hello"), 'messages[0].content[0]: expected {"type": ...}, found str'),
    "no-type": (user({"text": "x"}), "messages[0].content[0].type: expected text, image or video, found no such key"),
    "wrong-type": (
        user(TEXT, {"type": "audio"}),
        "messages[0].content[1].type: expected text, image or video, found 'audio'",
    ),
    "list-type": (user({"type": ["text"]}), "messages[0].content[0].type: expected text, image or video, found list"),
    "no-text": (user({"type": "text"}), "messages[0].content[0].text: expected text, found no such key"),
    "number-for-text": (user({"type": "text", "text": 5}), "messages[0].content[0].text: expected text, found 5"),
    "no-source": (
        user({"type": "image"}),
        "messages[0].content[0]: expected exactly one of image, url, path, base64, found none",
    ),
    "two-sources": (
        user({"type": "video", "url": "a", "path": "b"}),
        "exactly one of video, url, path, found url, path",
    ),
    "wrong-source": (
        user({"type": "image", "image": 7}),
        "messages[0].content[0].image: expected a local path or an image",
    ),
    "empty-path": (user({"type": "image", "path": ""}), "messages[0].content[0].path: expected a local path"),
    "second-message": ([*user(TEXT), {"role": "x", "content": ""}], "messages[1].role"),
    "remote-image": (
        user({"type": "image", "url": "https://a.b/c.png"}),
        "url: expected a local path (nothing is fetched), found https",
    ),
    "remote-video": (
        user({"type": "video", "url": "http://a.b/c.mp4"}),
        "messages[0].content[0].url: expected a local path",
    ),
    "remote-file": (user({"type": "image", "url": "file://host/c.png"}), "nothing is fetched"),
    "no-address": (user({"type": "image", "url": "http://[::1"}), "content[0].url: expected a local path or an image"),
    "remote-openai": (user({"type": "image_url", "image_url": {"url": "https://a.b"}}), "nothing is fetched"),
    "openai-without-address": (user({"type": "image_url", "image_url": {}}), "messages[0].content[0].image_url"),
    "bad-base64": (user({"type": "image", "base64": "?"}), "content[0].base64: expected a data URI or base64"),
    "frames-of-paths": (user({"type": "video", "video": ["a.png"]}), "expected frames as images or arrays, found str"),
    "bad-rate": (user({"type": "video", "video": [PICTURE], "fps": 0}), "messages[0].content[0].fps"),
}


@pytest.mark.parametrize("messages,line", MALFORMED.values(), ids=MALFORMED)
def test_malformed_messages(preprocessor: Preprocessor, messages: Any, line: str):
    with pytest.raises(UserError) as error:
        preprocessor(messages)
    assert line in str(error.value) and "\n" not in str(error.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | st.just(PICTURE),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "image", "url", "path", "video", "image_url", "fps"])
            | st.text(max_size=3),
            inner | st.sampled_from(["user", "system", "assistant", "text", "image", "video", "image_url"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(JSON)
def test_any_messages(messages: Any):
    try:
        media(messages)
        normalise(messages)
    except UserError as error:
        assert "\n" not in str(error)


def test_messages_are_left_as_they_are(preprocessor: Preprocessor):
    messages = [
        {"role": "user", "content": [{"type": "image_url", "image_url": "x.png", "detail": None}], "name": None}
    ]
    before = copy.deepcopy(messages)
    assert normalise(messages) == [{"role": "user", "content": [{"type": "image", "url": "x.png"}]}]
    assert messages == before


def test_sources_in_order(tmp_path: Path):
    clip = SampledVideo(FRAMES, (0.0, 1.0))
    png = base64.b64encode(b"bytes").decode()
    found = media(
        [
            {"role": "user", "content": [{"type": "image", "url": "a.png"}, TEXT, {"type": "video", "path": "b.mp4"}]},
            {"role": "assistant", "content": "yes"},
            *user({"type": "image", "path": Path("/c.png")}, {"type": "image", "url": "file:///d%20e.png"}),
            *user({"type": "image", "url": f"data:image/png;base64,{png}"}, {"type": "image", "base64": png}),
            *user({"type": "video", "video": FRAMES, "fps": 4}, {"type": "video", "video": clip}, IMAGE),
        ],
        base=tmp_path,
    )
    assert found.images == (tmp_path / "a.png", Path("/c.png"), Path("/d e.png"), b"bytes", b"bytes", PICTURE)
    assert found.videos[0] == tmp_path / "b.mp4" and found.videos[1] is FRAMES and found.videos[2] is clip
    assert found.fps == (None, 4, None)


@pytest.mark.parametrize(
    "messages,line",
    [
        ([{"role": "assistant", "content": [IMAGE]}], "as many images as the prompt has placeholders .0., found 1"),
        (
            user({"type": "text", "text": "<|IMAGE_PLACEHOLDER|>"}),
            r"as many images as the prompt has placeholders .1., found 0 \(<\|IMAGE_PLACEHOLDER\|> in a text is one\)",
        ),
        (
            user(IMAGE, {"type": "text", "text": "<|VIDEO_PLACEHOLDER|>"}),
            r"as many videos as the prompt has placeholders .1., found 0 \(<\|VIDEO_PLACEHOLDER\|> in a text is one\)",
        ),
    ],
    ids=["in-a-message-that-shows-none", "a-typed-placeholder", "a-typed-video-placeholder"],
)
def test_media_and_places_differ(preprocessor: Preprocessor, messages: Any, line: str):
    with pytest.raises(UserError, match=line):
        preprocessor(messages)


def test_encoding_wants_a_grid_for_each_place(chat: ChatProcessor):
    text = chat.render(user(IMAGE, TEXT))
    grid = np.array([[1, 4, 6]])
    ids = chat.encode(text, grid)
    assert ids.count(chat.token_ids["image_token"]) == 6
    for grids in (None, np.repeat(grid, 2, axis=0)):
        with pytest.raises(UserError, match=r"as many images as the prompt has placeholders \(1\)"):
            chat.encode(text, grids)
    with pytest.raises(UserError, match="expected as many videos"):
        chat.encode(text, grid, grid)


def test_counts_are_checked_before_files_are_read(preprocessor: Preprocessor):
    messages = [{"role": "assistant", "content": [{"type": "image", "path": "/no/such/file.png"}]}]
    with pytest.raises(UserError, match="expected as many images"):
        preprocessor(messages)


def test_prepared(preprocessor: Preprocessor):
    prepared = preprocessor.prepare(
        user({"type": "video", "video": FRAMES}, IMAGE, TEXT, IMAGE, {"type": "video", "video": FRAMES[:1]})
    )
    arrays = prepared.arrays
    tokens = preprocessor.chat.token_ids
    assert [item.kind for item in prepared.items] == ["video", "image", "image", "video"]
    assert [item.grid for item in prepared.items] == [(2, 8, 8), (1, 4, 4), (1, 4, 4), (2, 8, 8)]
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        pixels = [item.pixels for item in prepared.items if item.kind == kind]
        assert np.array_equal(np.concatenate(pixels), arrays[name])
        assert all(np.shares_memory(p, arrays[name]) for p in pixels)
    for item in prepared.items:
        assert set(arrays["input_ids"][0, item.tokens]) == {tokens[f"{item.kind}_token"]}
        assert arrays["input_ids"][0, item.tokens.start - 1] == tokens[f"{item.kind}_start_token"]
        assert arrays["input_ids"][0, item.tokens.stop] == tokens[f"{item.kind}_end_token"]
    assert prepared.position_ids.shape == (3, *arrays["input_ids"].shape)
    assert [p.shape for p in prepared.media()[0]] == [(128, 588), (16, 588), (16, 588), (128, 588)]


def test_placeholders_side_by_side(folder: Path):
    """Two pictures of unequal size with nothing between them: the grids tell them apart."""
    (folder / "chat_template.jinja").write_text("{% for _ in messages[0].content %}<|IMAGE_PLACEHOLDER|>{% endfor %}?")
    wide = {"type": "image", "image": Image.new("RGB", (140, 56))}
    prepared = Preprocessor.from_folder(folder).prepare(user(IMAGE, wide))
    assert [item.tokens for item in prepared.items] == [slice(0, 4), slice(4, 14)]
    assert prepared.position_ids[1, 0].tolist() == [0, 0, 1, 1, *[2] * 5, *[3] * 5, 7]


def test_text_alone_has_no_pixels(preprocessor: Preprocessor):
    arrays = preprocessor([{"role": "user", "content": "hello"}])
    assert set(arrays) == {"input_ids", "attention_mask", "mm_token_type_ids", "moe_mm_token_type_ids"}
    assert all(array.dtype == np.int64 and array.shape == arrays["input_ids"].shape for array in arrays.values())


def test_decoding_leaves_special_tokens_out(chat: ChatProcessor):
    ids = chat.encode("<|begin_of_sentence|>a red square</s>")
    assert chat.decode(ids) == "a red square"
    assert chat.decode(list(np.array(ids))) == "a red square"
    assert chat.byte_tokens and chat.decode(chat.encode("🙂")) == "🙂"


class CountingTokenizer:
    """A tokenizer's backend that counts the characters which it is given."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.characters = 0

    def encode_batch(self, texts: list[str], **options: Any) -> Any:
        self.characters += sum(map(len, texts))
        return self._backend.encode_batch(texts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


@pytest.mark.parametrize("character", ["😀", "你", "A", " ", "\n", "\x00"])
def test_a_text_that_is_too_long_is_not_tokenized_to_its_end(preprocessor: Preprocessor, character: str):
    """An emoji may take four tokens: four million of them took gigabytes, and most of a minute."""
    backend: Any = CountingTokenizer(preprocessor.chat.tokenizer.backend)
    tokenizer = replace(preprocessor.chat.tokenizer, backend=backend)
    limited = replace(preprocessor, chat=replace(preprocessor.chat, tokenizer=tokenizer))
    with pytest.raises(ContextLengthExceeded, match="prompt: expected at most 131072 tokens, found more"):
        limited.prepare(user({"type": "text", "text": character * 4_000_000}), max_tokens=131_072)
    assert backend.characters < 300_000


def test_a_long_text_within_the_limit_is_taken_whole(preprocessor: Preprocessor):
    messages = user({"type": "text", "text": "the red circle. " * 5000})
    tokens = preprocessor(messages)["input_ids"].shape[1]
    assert preprocessor.prepare(messages, max_tokens=tokens).arrays["input_ids"].shape[1] == tokens
    with pytest.raises(ContextLengthExceeded, match=f"found {tokens}"):
        preprocessor.prepare(messages, max_tokens=tokens - 1)


class FixedDecoder:
    """Decodes every image and video to planes of one shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self.decoded = 0

    def image(self, source: Any, name: str) -> Any:
        self.decoded += 1
        return np.zeros(self._shape, np.uint8)

    def video(self, source: Any, fps: float | None, name: str) -> Any:
        return self.image(source, name)


@pytest.mark.parametrize(
    ("kind", "shape", "tokens"),
    [("image", (1, 3, 56, 84), 6), ("video", (5, 3, 56, 56), 12), ("video", (1, 3, 56, 280), 20)],
)
def test_media_of_too_many_tokens_are_not_decoded_to_their_end(preprocessor: Preprocessor, kind, shape, tokens):
    """Sixteen short videos of few pixels each came to gigabytes before their prompt was found too long."""
    decoder = FixedDecoder(shape)
    limited = replace(preprocessor, decoder=decoder)
    messages = user(*[{"type": kind, kind: b"a file"}] * 10)
    assert limited.prepare(messages).arrays["input_ids"].shape[1] > 10 * tokens
    decoder.decoded = 0
    with pytest.raises(ContextLengthExceeded, match=f"found {4 * tokens} in the first of its images and videos"):
        limited.prepare(messages, max_tokens=4 * tokens - 1)
    assert decoder.decoded == 4


TEMPLATES = {
    "syntax": ("{% if %}", "chat_template.jinja: expected a chat template"),
    "raises": (
        "{{ raise_exception('no such\nrole') }}",
        "messages: expected messages that the chat template accepts, found no such role",
    ),
    "undefined": ("{{ messages[0].nothing.at_all }}", "messages: expected messages that the chat template accepts"),
    "python": ("{{ 1 / 0 }}", "messages: expected messages that the chat template accepts, found division by zero"),
    "sandbox": ("{{ messages.__class__.__mro__ }}", "messages: expected messages that the chat template accepts"),
    "size": ("{{ 'x' * 20000000 }}", "prompt: expected at most 16777216 characters"),
    "mutation": ("{{ messages.append(1) }}", "messages: expected messages that the chat template accepts"),
}


@pytest.mark.parametrize("template,line", TEMPLATES.values(), ids=TEMPLATES)
def test_templates_that_fail(folder: Path, template: str, line: str):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError) as error:
        ChatProcessor.from_folder(folder).render([{"role": "user", "content": "x"}])
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["a\ud800b", [{"type": "text", "text": "\udfff"}]])
def test_half_of_a_surrogate_pair(chat: ChatProcessor, content):
    """JSON can spell it, and no tokenizer takes it."""
    with pytest.raises(UserError, match=r"messages: expected text in Unicode, found '\\u"):
        chat.render([{"role": "user", "content": content}])


def test_templates_see_no_live_objects(folder: Path):
    (folder / "chat_template.jinja").write_text(
        "{{ messages[0].content[0].image }} {{ messages[0].content[0].image.save }}"
    )
    assert ChatProcessor.from_folder(folder).render(user(IMAGE)) == "<Image> "


def test_a_template_in_the_tokenizers_file(folder: Path, change):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="expected a chat template in chat_template.jinja or tokenizer_config.json"):
        ChatProcessor.from_folder(folder)
    for template in ("hi {{ messages[0].content }}", [{"name": "default", "template": "hi {{ messages[0].content }}"}]):
        change("tokenizer_config.json", chat_template=template)
        assert ChatProcessor.from_folder(folder).render([{"role": "user", "content": "x"}]) == "hi x"


@pytest.mark.parametrize(
    "name,changes,line",
    [
        (
            "tokenizer_config.json",
            {"image_token": "absent"},
            "tokenizer_config.json: image_token: expected a token, found no such key",
        ),
        ("tokenizer_config.json", {"eos_token": 3}, "eos_token: expected a token, found 3"),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "BertTokenizer"},
            "tokenizer_class: expected LlamaTokenizer or TokenizersBackend",
        ),
        ("tokenizer.json", {"model": "absent"}, "tokenizer.json: expected a tokenizer, found KeyError"),
        ("tokenizer.json", {"model": {"vocab": {"a": -1}, "merges": []}}, "tokenizer.json: expected a tokenizer"),
        ("tokenizer.json", {"added_tokens": [{"id": 1}]}, "tokenizer.json: added_tokens: expected a token"),
        ("video_preprocessor_config.json", {"merge_size": 4}, "merge_size: expected 2, as for images, found 4"),
    ],
    ids=["no-image-token", "eos-number", "class", "no-model", "bad-vocabulary", "bad-added-token", "merge-sizes"],
)
def test_damaged_tokenizers(folder: Path, change, name: str, changes: dict, line: str):
    change(name, **changes)
    with pytest.raises(UserError) as error:
        ChatProcessor.from_folder(folder)
    assert line in str(error.value) and "\n" not in str(error.value)
