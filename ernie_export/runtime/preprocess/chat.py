"""From messages to token ids: the checkpoint's chat template, then placeholders expanded, then its tokenizer.

The Jinja environment is set up as transformers sets it up (utils/chat_template_utils.py), sandboxed: a checkpoint's
template is somebody else's program. It sees messages as plain data, never live objects.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np
from numpy.typing import NDArray

from ernie_export.common.errors import ContextLengthExceeded, InvalidValue, UserError
from ernie_export.runtime.preprocess import image, video
from ernie_export.runtime.preprocess.messages import Message, normalise
from ernie_export.runtime.preprocess.settings import NESTED_FILE, Section, processor_section, read_json
from ernie_export.runtime.preprocess.tokenizer import CONFIG_FILE, ChatTokenizer
from ernie_export.runtime.text_stream import byte_token_ids

TEMPLATE_FILE = "chat_template.jinja"
LEGACY_TEMPLATE_FILE = "chat_template.json"
LONGEST = 2**24  # characters of a prompt: the tokenizer ends the process where it finds no memory for its copies
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class ChatProcessor:
    """A checkpoint's chat template and tokenizer, with the spatial merge size that placeholder counts depend on.

    `byte_tokens` are the ids of the pieces that stand for single bytes.
    """

    tokenizer: ChatTokenizer
    template: jinja2.Template
    merge_size: int
    byte_tokens: frozenset[int]

    @classmethod
    def from_folder(cls, folder: Path) -> "ChatProcessor":
        """Read the tokenizer's files and the chat template.

        The template is looked for in processor_config.json, chat_template.json, chat_template.jinja, as the reference
        looks, and last in tokenizer_config.json. Raises UserError where a file is missing or damaged.
        """
        folder = Path(folder)
        tokenizer = ChatTokenizer.from_folder(folder)
        source, text = _find_template(folder, tokenizer)
        try:
            template = _environment().from_string(text)
        except jinja2.TemplateError as e:
            raise UserError(f"{source}: expected a chat template, found {_line(e)}") from e
        images = Section(*processor_section(folder, "image_processor", image.FILE))
        videos = Section(*processor_section(folder, "video_processor", video.FILE))
        merge = images.whole("merge_size", 2)
        assert merge is not None  # it has a default
        if videos.whole("merge_size", 2) != merge:
            raise videos.fail("merge_size", f"{merge}, as for images")
        return cls(tokenizer, template, merge, byte_token_ids(tokenizer.backend.get_vocab()))

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt as text, one placeholder token for each image and video.

        `variables` are passed to the template (`enable_thinking`, say). Raises UserError for messages of a wrong shape,
        or where the template itself refuses.
        """
        chat = [_with_reasoning(_plain(message)) for message in normalise(messages)]
        values = {**self.tokenizer.named, **_plain(dict(variables or {}))}
        try:
            text = self.template.render(
                messages=chat, tools=None, documents=None, add_generation_prompt=add_generation_prompt, **values
            )
        except Exception as e:  # a template may do anything that Python can, and fail so
            raise InvalidValue("messages", "messages that the chat template accepts", _line(e)) from e
        if len(text) > LONGEST:
            raise ContextLengthExceeded("prompt", f"at most {LONGEST} characters from the chat template", len(text))
        try:
            text.encode()
        except UnicodeEncodeError as e:  # JSON can spell half of a pair, which no tokenizer takes
            raise InvalidValue("messages", "text in Unicode", f"{text[e.start]!a}") from e
        return text

    def placeholders(self, text: str) -> list[str]:
        """ "image" or "video" for each placeholder token of a rendered prompt, in order."""
        return ["image" if match == self._image else "video" for match in self._pattern.findall(text)]

    def encode(
        self, text: str, image_grids: NDArray[np.int64] | None = None, video_grids: NDArray[np.int64] | None = None
    ) -> list[int]:
        """Expand each placeholder to its number of tokens, then tokenize.

        Grids are int64 (n, 3) of (t, h, w) in patches; an image takes t·h·w / merge² tokens, a video half as many.
        Raises UserError where placeholders and media differ in number.
        """
        grids = {
            "image": np.zeros((0, 3), np.int64) if image_grids is None else np.asarray(image_grids),
            "video": np.zeros((0, 3), np.int64) if video_grids is None else np.asarray(video_grids),
        }
        found = self.placeholders(text)
        check_counts(found, len(grids["image"]), len(grids["video"]))
        lengths = {kind: iter(self.token_counts(kind, rows)) for kind, rows in grids.items()}
        kinds = iter(found)
        expanded = self._pattern.sub(lambda match: match.group() * int(next(lengths[next(kinds)])), text)
        ids = self.tokenizer.encode(expanded)
        for kind in ("image", "video"):
            token = self.tokenizer.ids[f"{kind}_token"]
            expected = expanded.count(self.tokenizer.media[f"{kind}_token"])
            if ids.count(token) != expected:
                raise InvalidValue("messages", f"{expected} {kind} tokens after tokenizing", ids.count(token))
        return ids

    def token_counts(self, kind: str, grids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Placeholder tokens, int64 (n,), of "image" or "video" grids (n, 3)."""
        return grids.prod(axis=1) // (self.merge_size**2 * (video.TEMPORAL_PATCH if kind == "video" else 1))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode([int(i) for i in ids])

    @property
    def token_ids(self) -> dict[str, int]:
        """Ids of image_token, image_start_token, image_end_token, the same for video, and eos_token where named."""
        return self.tokenizer.ids

    @property
    def _image(self) -> str:
        return self.tokenizer.media["image_token"]

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(self.tokenizer.media[f"{kind}_token"]) for kind in ("image", "video")))


def check_counts(found: list[str], images: int, videos: int) -> None:
    """Raise InvalidValue if a rendered prompt has another number of placeholders than there are media."""
    for kind, given in (("image", images), ("video", videos)):
        if (count := found.count(kind)) != given:
            raise InvalidValue("messages", f"as many {kind}s as the prompt has placeholders ({count})", given)


def _find_template(folder: Path, tokenizer: ChatTokenizer) -> tuple[Path, str]:
    value: Any = None
    for name in (NESTED_FILE, LEGACY_TEMPLATE_FILE, TEMPLATE_FILE):
        source = folder / name
        if not source.is_file():
            continue
        if name == TEMPLATE_FILE:
            try:
                value = source.read_text(encoding="utf-8")
            except (OSError, ValueError) as e:
                raise UserError(f"{source}: expected a chat template, found {e}") from e
        else:
            value = read_json(source).get("chat_template")
        if value is not None:
            break
    else:
        source, value = folder / CONFIG_FILE, tokenizer.template
    if isinstance(value, list):  # [{"name": ..., "template": ...}, ...]
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    if isinstance(value, dict):
        value = value.get("default")
    if not isinstance(value, str):
        raise UserError(f"{folder}: expected a chat template in {TEMPLATE_FILE} or {CONFIG_FILE}, found none")
    return source, value


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's text for training; here it passes through."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Dict:
    """`dict` for templates, without the attributes by which a real class could be climbed."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment.filters["tojson"] = tojson  # Jinja's own escapes for HTML
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["dict"] = _Dict()
    return environment


def _plain(value: Any) -> Any:
    """A copy made of JSON's types alone; anything else becomes "<its type>", which templates only test for presence."""
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
    """A message's reasoning under every name that a template may read."""
    reasoning = next((message[key] for key in _REASONING_KEYS if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
