"""Whole conversations against Ernie4_5_VLMoeProcessor and its tokenizer: every array, every id."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from ernie_export.runtime.preprocess import Preprocessor
from ernie_export.runtime.preprocess.chat import ChatProcessor
from ernie_export.runtime.preprocess.tokenizer import ChatTokenizer

TEXTS = [
    "What colour is it?", " leading and trailing ", "two  spaces\n\nand lines\t", "0123456789 12", "é漢字 🙂 naïve",
    "", "\n", "▁already", "<s> and </s> typed", "<think>", "Picture 1:", "a<|IMAGE_START|>b", "<mask:1><unk>",
    "\u200b\x00",
]  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"picture{index}.png" for index in range(4)]
    for index, path in enumerate(paths):
        rng = np.random.default_rng(index)
        shape = (*(int(n) for n in rng.integers(30, 200, 2)), 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def clips(write_clip: Callable[..., Path]) -> list[Path]:
    return [write_clip(5, 64, 96, name="a.mp4"), write_clip(12, 130, 70, name="b.mp4")]


def compare(folder: Path, reference_processor, messages: list[dict[str, Any]], **options: Any) -> dict[str, np.ndarray]:
    variables = {key: value for key, value in options.items() if key != "add_generation_prompt"}
    prompt = options.get("add_generation_prompt", True)
    ours = Preprocessor.from_folder(folder)(messages, add_generation_prompt=prompt, variables=variables)
    processor, options = reference_processor(folder), {"add_generation_prompt": True} | options
    theirs = processor.apply_chat_template(
        copy.deepcopy(messages), tokenize=True, return_dict=True, return_tensors="np", **options
    )
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype and np.array_equal(ours[name], expected), name
    return ours


def conversation(pictures: list[Path], clips: list[Path]) -> list[dict[str, Any]]:
    """Pictures and clips mixed over several turns, in each form that a message may take."""
    return [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image", "path": str(pictures[0])},
                {"type": "image", "url": str(pictures[1])},
                {"type": "text", "text": "Compare them with "},
                {"type": "video", "url": str(clips[0])},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "They differ."}]},
        {
            "role": "user",
            "content": [
                {"type": "video", "video": str(clips[1])},
                {"type": "text", "text": "And this?"},
                {"type": "image", "image": Image.open(pictures[2])},
                {"type": "image_url", "image_url": {"url": str(pictures[3])}},
            ],
        },
    ]


def test_a_mixed_conversation(mini: Path, reference_processor, pictures, clips):
    arrays = compare(mini, reference_processor, conversation(pictures, clips))
    assert len(arrays["image_grid_thw"]) == 4 and len(arrays["video_grid_thw"]) == 2
    assert set(arrays["moe_mm_token_type_ids"][0]) == {0, 1, 2}


@pytest.mark.parametrize("kinds", ["i", "ii", "v", "vv", "iv", "vi", "ivi", ""])
def test_media_alone_and_side_by_side(mini: Path, reference_processor, pictures, clips, kinds: str):
    sources = {"i": iter(pictures), "v": iter(clips)}
    names = {"i": "image", "v": "video"}
    parts = [{"type": names[kind], "path": str(next(sources[kind]))} for kind in kinds]
    compare(mini, reference_processor, [{"role": "user", "content": [*parts, {"type": "text", "text": "So?"}]}])


@pytest.mark.parametrize("text", TEXTS)
def test_text(mini: Path, reference_processor, text: str):
    compare(mini, reference_processor, [{"role": "user", "content": text}])


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("prompt", [True, False])
def test_template_variables(mini: Path, reference_processor, thinking: bool, prompt: bool):
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Think."},
        {"role": "assistant", "content": "Thought.", "reasoning": "Hm.", "tool_calls": None},
    ]
    compare(mini, reference_processor, messages, add_generation_prompt=prompt, enable_thinking=thinking)


TEMPLATES = {
    "what-it-sees": "{{ messages | tojson }}{{ bos_token }}{{ eos_token }}{{ cls_token }}{{ sep_token }}{{ pad_token }}"
    "{{ unk_token }}{{ mask_token }}{{ image_token is defined }}{{ tools is none }}{{ documents is none }}",
    "statements": "{% for m in messages %}\n  {% if loop.first %}\n    {% continue %}\n  {% endif %}\n"
    "  {% generation %}{{ m.content | tojson(indent=1) }}{% endgeneration %}\n{% break %}{% endfor %}\n",
    "globals": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    "{{ dict(a=1) }}{{ strftime_now('%Y') }}{{ messages[1].thinking }}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_the_template_environment(mini: Path, altered, reference_processor, template: str):
    folder = altered()
    (folder / "chat_template.jinja").write_text(template)
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "é<&>'"}], "extra": [1, 2.5, None, {"a": True}]},
        {"role": "assistant", "content": "no", "reasoning_content": "why"},
    ]
    expected = reference_processor(folder).apply_chat_template(copy.deepcopy(messages), add_generation_prompt=True)
    assert ChatProcessor.from_folder(folder).render(messages) == expected


def test_the_nested_processor_file(mini: Path, altered, reference_processor, pictures, clips):
    folder = altered(image={"size": {"shortest_edge": 1, "longest_edge": 2}})  # loses to the nested form
    nested: dict[str, Any] = {"processor_class": "Ernie4_5_VLMoeProcessor"}
    for key, name in (
        ("image_processor", "preprocessor_config.json"),
        ("video_processor", "video_preprocessor_config.json"),
    ):
        nested[key] = json.loads((mini / name).read_text())
    nested["image_processor"]["size"] = {"shortest_edge": 1568, "longest_edge": 6272}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    arrays = compare(folder, reference_processor, conversation(pictures, clips))
    assert arrays["image_grid_thw"].prod(axis=1).max() <= 6272 // 196


@pytest.mark.parametrize("place", ["processor_config.json", "chat_template.json"])
def test_other_places_of_the_template(altered, reference_processor, place: str):
    folder = altered()
    (folder / place).write_text(json.dumps({"chat_template": "{{ messages[0].content }} from elsewhere"}))
    compare(folder, reference_processor, [{"role": "user", "content": "given"}])


TOKENIZERS = {
    "prefix-space": {"add_prefix_space": True},
    "prefix-space-by-default": {"add_prefix_space": None},
    "legacy": {"add_prefix_space": True, "legacy": True},
    "ignored-bos": {"add_bos_token": True, "add_eos_token": True},
    "an-extra-token": {"extra_special_tokens": ["<|extra|>"], "sep_token": "<|other|>"},
    "added-tokens-listed": {"added_tokens_decoder": {"3": {"content": "<think>", "special": False}}},
    "fast": {"tokenizer_class": "LlamaTokenizerFast"},
    "backend": {"tokenizer_class": "TokenizersBackend"},
}
SENTENCES = [*TEXTS, "a <|extra|> b", " <|other|> ", "x <think> y", "Picture 1:<|IMAGE_START|><|IMAGE_PLACEHOLDER|>"]


def compare_tokenizers(folder: Path, reference_processor) -> None:
    ours = ChatTokenizer.from_folder(folder)
    theirs = reference_processor(folder).tokenizer
    for text in SENTENCES:
        assert ours.encode(text) == theirs(text).input_ids, text
    for name in ours.media:
        assert ours.ids[name] == getattr(theirs, f"{name}_id")
    assert ours.ids["eos_token"] == theirs.eos_token_id
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, len(theirs), int(rng.integers(0, 20))).tolist()
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("changes", TOKENIZERS.values(), ids=TOKENIZERS)
def test_other_tokenizer_settings(altered, reference_processor, changes: dict):
    compare_tokenizers(altered(tokenizer=changes), reference_processor)


def test_a_byte_level_tokenizer_is_used_as_it_stands(mini: Path, altered, reference_processor):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={"<unk>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.enable_truncation(4)
    folder = altered()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    compare_tokenizers(folder, reference_processor)


def test_a_post_processor_adds_its_tokens_unless_the_prompt_has_one(altered, reference_processor):
    folder = altered()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    with_bos = compare(folder, reference_processor, [{"role": "user", "content": "hello"}])
    assert with_bos["input_ids"][0, 0] == bos
    (folder / "chat_template.jinja").write_text("<s>{{ messages[0].content }}")
    once = compare(folder, reference_processor, [{"role": "user", "content": "hello"}])
    assert once["input_ids"][0].tolist().count(bos) == 1
