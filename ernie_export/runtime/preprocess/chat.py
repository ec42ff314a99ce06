"""Turn messages into token ids: render the chat template, expand placeholders, tokenize.

The Jinja environment is set up as transformers sets it up (utils/chat_template_utils.py), sandboxed: a checkpoint's
template is somebody else's program. It sees messages as plain data, never live objects.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np
from numpy.typing import NDArray

from ernie_export.common.errors import ContextLengthExceeded, InvalidFile, InvalidValue
from ernie_export.common.json_fields import one_line, read_json
from ernie_export.common.processor_settings import (
    IMAGE_PROCESSOR,
    NESTED_FILE,
    TEMPLATE_FILE,
    VIDEO_PROCESSOR,
    template_file,
)
from ernie_export.runtime.preprocess import video
from ernie_export.runtime.preprocess.final_message import cut_at_mark, mark_end
from ernie_export.runtime.preprocess.messages import Message, normalise
from ernie_export.runtime.preprocess.settings import processor_settings, read_merge_size
from ernie_export.runtime.preprocess.template import template_environment
from ernie_export.runtime.preprocess.tokenizer import ChatTokenizer
from ernie_export.runtime.preprocess.tokenizer_settings import CONFIG_FILE
from ernie_export.runtime.text_stream import byte_token_ids

LEGACY_TEMPLATE_FILE = "chat_template.json"
MAX_CHARACTERS = 2**24  # of a prompt: the tokenizer ends the process where it finds no memory for its copies
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class ChatProcessor:
    """A checkpoint's chat template and tokenizer.

    Attributes:
        tokenizer: The tokenizer.
        template: The chat template.
        merge_size: Patches that a placeholder token stands for along each side.
        byte_tokens: Ids of the pieces that stand for single bytes.
        template_file: Where the template was read.
        ignored: File and key of each setting that changes nothing.
        source: The text of the chat template.
    """

    tokenizer: ChatTokenizer
    template: jinja2.Template
    merge_size: int
    byte_tokens: frozenset[int]
    template_file: Path
    ignored: tuple[tuple[Path, str], ...]
    source: str

    @classmethod
    def from_folder(cls, folder: Path) -> "ChatProcessor":
        """Read the tokenizer's files and the chat template.

        The template is looked for in processor_config.json, chat_template.json, chat_template.jinja (or
        additional_chat_templates/default.jinja in its place), as the reference looks, and last in
        tokenizer_config.json. Raises InvalidFile where a file is missing or damaged.
        """
        folder = Path(folder)
        tokenizer = ChatTokenizer.from_folder(folder)
        source, text = _find_template(folder, tokenizer)
        try:
            template = template_environment().from_string(text)
        except jinja2.TemplateError as e:
            raise InvalidFile(source, "a chat template", _reason(e)) from e
        merge = read_merge_size(processor_settings(folder, IMAGE_PROCESSOR))
        videos = processor_settings(folder, VIDEO_PROCESSOR)
        if read_merge_size(videos) != merge:
            raise videos.error("merge_size", f"{merge}, as for images")
        ignored = tokenizer.ignored
        if tokenizer.template not in (None, text) and source.name != CONFIG_FILE:
            ignored += ((folder / CONFIG_FILE, "chat_template"),)
        byte_tokens = byte_token_ids(tokenizer.backend.get_vocab())
        return cls(tokenizer, template, merge, byte_tokens, source, ignored, text)

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
    ) -> str:
        """Render the prompt as text, with one placeholder token for each image and video.

        Args:
            messages: The conversation.
            add_generation_prompt: Whether the prompt ends where the assistant's answer begins.
            variables: Passed to the template, as `chat_variables` returns them.
            continue_final_message: Whether the prompt ends within the last message, which the answer goes on with.

        Raises:
            InvalidValue: The messages are malformed, or the template refuses them.
            ContextLengthExceeded: The prompt has more than MAX_CHARACTERS characters.
        """
        chat = [_with_reasoning(_plain(message)) for message in normalise(messages)]
        final = mark_end(chat[-1]) if continue_final_message else ""
        absent = {"tools": None, "documents": None}
        values = {**self.tokenizer.named, **absent, **_plain(dict(variables or {}))}
        try:
            text = self.template.render(messages=chat, add_generation_prompt=add_generation_prompt, **values)
        except Exception as e:  # a template may do anything that Python can, and fail so
            raise InvalidValue("messages", "messages that the chat template accepts", _reason(e)) from e
        if continue_final_message:
            text = cut_at_mark(text, final)
        if len(text) > MAX_CHARACTERS:
            expected = f"at most {MAX_CHARACTERS} characters from the chat template"
            raise ContextLengthExceeded("prompt", expected, len(text))
        try:
            text.encode()
        except UnicodeEncodeError as e:  # JSON can hold half of a surrogate pair, which no tokenizer takes
            raise InvalidValue("messages", "text in Unicode", ascii(text[e.start])) from e
        return text

    @cached_property
    def thinks_by_default(self) -> bool:
        """Whether the template lets the model think where a request does not say: its prompt ends in `<think>`."""
        for content in ("?", [{"type": "text", "text": "?"}]):
            with suppress(InvalidValue):
                return self.render([{"role": "user", "content": content}]).rstrip().endswith("<think>")
        return False

    def thinks(self, enable_thinking: bool | None) -> bool:
        """Return whether the model thinks where a request says so, or says nothing (None)."""
        return self.thinks_by_default if enable_thinking is None else enable_thinking

    @cached_property
    def renders_tools(self) -> bool:
        """Whether the chat template has a place for tools: it writes the name of one that it is given."""
        name = "a_tool_to_look_for"
        tool = {"type": "function", "function": {"name": name, "description": "", "parameters": {}}}
        for content in ("?", [{"type": "text", "text": "?"}]):
            with suppress(InvalidValue):
                if name in self.render([{"role": "user", "content": content}], variables={"tools": [tool]}):
                    return True
        return False

    def placeholders(self, text: str) -> list[str]:
        """Return "image" or "video" for each placeholder token of a rendered prompt, in order."""
        return ["image" if match == self._image else "video" for match in self._pattern.findall(text)]

    def encode(
        self, text: str, image_grids: NDArray[np.int64] | None = None, video_grids: NDArray[np.int64] | None = None
    ) -> list[int]:
        """Expand each placeholder to its number of tokens, then tokenize.

        An image takes t·h·w / merge² tokens, a video half as many.

        Args:
            text: A rendered prompt.
            image_grids: int64 (images, 3), (t, h, w) in patches; None for no images.
            video_grids: int64 (videos, 3), likewise.

        Raises:
            InvalidValue: Placeholders and media differ in number, or the tokenizer merges placeholder tokens.
        """
        grids = {
            "image": np.zeros((0, 3), np.int64) if image_grids is None else np.asarray(image_grids),
            "video": np.zeros((0, 3), np.int64) if video_grids is None else np.asarray(video_grids),
        }
        kinds = self.placeholders(text)
        check_counts(kinds, len(grids["image"]), len(grids["video"]), self.count_hints)
        lengths = {kind: iter(self.token_counts(kind, rows)) for kind, rows in grids.items()}
        order = iter(kinds)
        expanded = self._pattern.sub(lambda match: match.group() * int(next(lengths[next(order)])), text)
        ids = self.tokenizer.encode(expanded)
        for kind in ("image", "video"):
            token = self.tokenizer.ids[f"{kind}_token"]
            expected = expanded.count(self.tokenizer.media[f"{kind}_token"])
            if ids.count(token) != expected:
                raise InvalidValue("messages", f"{expected} {kind} tokens after tokenizing", ids.count(token))
        return ids

    def token_counts(self, kind: str, grids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of placeholder tokens, int64 (n,), of "image" or "video" grids, int64 (n, 3)."""
        patches: NDArray[np.int64] = grids.prod(axis=1)
        return patches // (self.merge_size**2 * (video.TEMPORAL_PATCH if kind == "video" else 1))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids, special tokens left out or with their names."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens)

    @property
    def token_ids(self) -> dict[str, int]:
        """Return the ids of image_token, image_start_token, image_end_token, the same for video, and eos_token."""
        return self.tokenizer.ids

    @property
    def count_hints(self) -> dict[str, str]:
        """Return which token counts as a placeholder, by "image" and "video": it may stand in a user's text."""
        return {kind: f"{self.tokenizer.media[f'{kind}_token']} in a text is one" for kind in ("image", "video")}

    @property
    def _image(self) -> str:
        return self.tokenizer.media["image_token"]

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(self.tokenizer.media[f"{kind}_token"]) for kind in ("image", "video")))


def chat_variables(
    enable_thinking: bool | None = None, tools: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Return variables of a chat template, under the names that ERNIE's templates know.

    Args:
        enable_thinking: Whether the model thinks before it answers; None for the template's default. The template of
            ERNIE-4.5-VL-28B-A3B-Thinking reads `options.thinking_mode`, the others `enable_thinking`.
        tools: Descriptions of tools in OpenAI's form.
    """
    variables: dict[str, Any] = {}
    if enable_thinking is not None:
        variables |= {"enable_thinking": enable_thinking, "options": {"thinking_mode": enable_thinking}}
    if tools:
        variables["tools"] = list(tools)
    return variables


def check_counts(kinds: list[str], images: int, videos: int, hints: Mapping[str, str]) -> None:
    """Check that a rendered prompt has a placeholder for each media item.

    Args:
        kinds: "image" or "video" for each placeholder.
        images: Images in the messages.
        videos: Videos in the messages.
        hints: What to say of the placeholders of a kind.

    Raises:
        InvalidValue: The numbers differ.
    """
    for kind, count in (("image", images), ("video", videos)):
        placeholders = kinds.count(kind)
        if placeholders != count:
            expected = f"as many {kind}s as the prompt has placeholders ({placeholders})"
            raise InvalidValue("messages", expected, count, hint=hints.get(kind, ""))


def _find_template(folder: Path, tokenizer: ChatTokenizer) -> tuple[Path, str]:
    """Return the chat template and its file. Raises InvalidFile where there is none, or it is no text."""
    value: Any = None
    for source in (folder / NESTED_FILE, folder / LEGACY_TEMPLATE_FILE, template_file(folder)):
        if not source.is_file():
            continue
        if source.suffix == ".jinja":
            try:
                value = source.read_text(encoding="utf-8-sig")  # editors of Windows put a mark first
            except (OSError, ValueError) as e:
                raise InvalidFile(source, "a chat template", e) from e
        else:
            value = read_json(source).get("chat_template")
        if value is not None:
            break
    else:
        source, value = folder / CONFIG_FILE, tokenizer.template
    if value is None:
        raise InvalidFile(folder, f"a chat template in {TEMPLATE_FILE} or {CONFIG_FILE}", "none")
    if isinstance(value, list):  # [{"name": ..., "template": ...}, ...]
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    if isinstance(value, dict):
        if not isinstance(value.get("default"), str):
            names = " and ".join(one_line(name) for name in value) or "none"
            raise InvalidFile(source, "a chat template named default", names, key="chat_template")
        value = value["default"]
    if not isinstance(value, str):
        raise InvalidFile(source, "a chat template", one_line(value), key="chat_template")
    return source, value


def _plain(value: Any) -> Any:
    """Copy a value with JSON's types alone; any other becomes "<its type>", which templates only test for presence."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value) if type(value) is not kind else value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value) if type(value) in (list, tuple) else [*map(_plain, value)]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return f"<{type(value).__name__}>"


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with its reasoning under every key that a template may read."""
    reasoning = next((message[key] for key in _REASONING_KEYS if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
