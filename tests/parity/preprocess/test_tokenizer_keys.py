"""Every key of the tokenizer's files, with and without it: the class's text, ids and answers are ours, or a refusal.

The keys are those that the tokenizer classes of transformers read, and what other classes and tools write; and what the
older files special_tokens_map.json and added_tokens.json hold, and the places of chat templates.
"""

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from transformers import LlamaTokenizer
from transformers.models.auto import tokenization_auto
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from ernie_export.common.errors import InvalidFile
from ernie_export.runtime.preprocess.chat import ChatProcessor
from ernie_export.runtime.preprocess.tokenizer_classes import OTHER_CLASSES
from ernie_export.runtime.preprocess.tokenizer_settings import AS_IT_STANDS, LLAMA
from tests.mini import MEDIA_IDS, VOCABULARY
from tests.paths import MINI

CONFIG = "tokenizer_config.json"
TEMPLATE = (
    "{% for name in [bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token, image_token] %}"
    "[{{ name }}]{% endfor %}{{ extra_token is defined }}{{ new_token }}"
    "{% for m in messages %}{{ m.content }}{% endfor %}{{ add_generation_prompt }}"
)
TEXTS = (
    "What colour is it?", " two  spaces ", "a <|extra|> b", "x <think> y<|IMAGE_START|><|IMAGE_PLACEHOLDER|>", "",
    "Hello , don 't", "<s>typed</s>", "[NEW] and [new]", "a<mask:1>b",
)  # fmt: skip
ANSWERS = tuple(tuple(int(i) for i in np.random.default_rng(seed).integers(0, 480, 12)) for seed in range(40))
DROP = object()
TOKEN = {"content": "<think>", "lstrip": True, "rstrip": True, "normalized": False, "single_word": False}
# Values to try; every other key is set to 3.
VALUES: dict[str, tuple[Any, ...]] = {
    "add_bos_token": (True, False, None),
    "add_eos_token": (True, False),
    "add_prefix_space": (True, False, None),
    "added_tokens_decoder": (
        {},
        {"3": {**TOKEN, "special": True}},
        {f"{VOCABULARY}": {"content": "[NEW]", "special": False}},
        {f"{VOCABULARY}": {"content": "[NEW]", "special": True, "lstrip": True, "rstrip": True}},
        {f"{VOCABULARY}": "[NEW]"},
        None,
    ),
    "additional_special_tokens": (["<|extra|>"], [], None),
    "audio_token": ("<|audio|>", None),
    "auto_map": ({"AutoTokenizer": ["a.B", None]},),
    "backend": ("tokenizers", None),
    "bos_token": ("<|begin_of_sentence|>", "<|new|>", None, {**TOKEN, "__type": "AddedToken"}, 3),
    "chat_control_tokens": (["<s>"], None),
    "clean_up_tokenization_spaces": (True, None),
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": (True,),
    "cls_token": ("<|new|>", None),
    "do_lower_case": (True,),
    "eos_token": ("<unk>", "<|new|>", {**TOKEN, "__type": "AddedToken"}, None),
    "errors": ("replace",),
    "extra_special_tokens": (
        [], ["<|extra|>"], [{**TOKEN, "content": "<|extra|>", "__type": "AddedToken"}],
        {"extra_token": "<|extra|>"}, None,
    ),
    "fast_tokenizer_files": (["tokenizer.json"],),
    "fix_mistral_regex": (True, None),
    "image_token": ("<unk>", "<|IMAGE_START|>", None, {**TOKEN, "content": "<|IMAGE_PLACEHOLDER|>"}),
    "init_inputs": ([],),
    "is_local": (True,),
    "legacy": (True, False, None),
    "local_files_only": (True,),
    "mask_token": ("<|new|>", None),
    "max_length": (3, None),
    "merges_file": ("merges.txt",),
    "model_input_names": (["input_ids"],),
    "model_specific_special_tokens": ({"extra_token": "<|extra|>"},),
    "name_or_path": ("somewhere",),
    "new_token": ("<|new|>", {**TOKEN, "content": "<|new|>", "__type": "AddedToken"}, {"content": "<|new|>"}),
    "normalizer": ({"type": "Lowercase"},),
    "pad_token": ("<|new|>", None),
    "padding_side": ("left", "right"),
    "pad_to_multiple_of": (8,),
    "post_processor": (None,),
    "processor_class": ("Other",),
    "response_schema": ({},),
    "response_template": ("a",),
    "sep_token": ("<|new|>", None),
    "slow_tokenizer_class": ("Other",),
    "sp_model_kwargs": ({}, {"enable_sampling": True}),
    "spaces_between_special_tokens": (True, False),
    "special_tokens_map_file": ("a.json",),
    "split_special_tokens": (True, False),
    "tokenizer_class": (
        "LlamaTokenizerFast", "TokenizersBackend", "PreTrainedTokenizerFast", "PreTrainedTokenizer",
        "Ernie4_5_VLTokenizer", "Ernie4_5Tokenizer", "T5Tokenizer", "GPT2TokenizerFast", "Unheard-OfTokenizer",
        "unheard of", None,
    ),
    "tokenizer_file": ("elsewhere.json",),
    "tokenizer_object": (None,),
    "tokenizer_padding": (None,),
    "tokenizer_truncation": (None,),
    "truncation": (True,),
    "truncation_side": ("left",),
    "truncation_strategy": ("longest_first",),
    "unk_token": ("<|new|>", None),
    "use_default_system_prompt": (True,),
    "use_fast": (True, False),
    "verbose": (True,),
    "video_token": ("<unk>",),
}  # fmt: skip
FOREIGN = (
    "add_prompt alpha auto_map do_lower_case errors fast_tokenizer_files image_token_len max_len max_model_len "
    "model_type new_token pad_to_multiple_of processor_class sp_model_kwargs spaces_between_special_tokens "
    "tokenizer_type trust_remote_code unsloth_version use_fast"
).split()
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
# Refused although the class answers: a number is looked up among the tokens' texts; other classes build pipelines of
# their own from tokenizer.json.
REFUSED = {("bos_token", 3), ("tokenizer_class", "T5Tokenizer"), ("tokenizer_class", "GPT2TokenizerFast")}
# Read although the class refuses it: what it means is plain.
READ = {"chat_template.json"}
# Set by the code around the classes, never by a file.
INTERNAL = {"_json_padding", "_json_truncation", "_spm_precompiled_charsmap", "gguf_file"}
Found = tuple[Any, ...]


def own_keys() -> set[str]:
    """Return what the classes take from a file: their parameters, and the keys that they pop, get or look for."""
    found: set[str] = set()
    for cls in (LlamaTokenizer, TokenizersBackend, PreTrainedTokenizerBase):
        for method in (cls.__init__, cls._from_pretrained, cls.convert_to_native_format):
            source = inspect.getsource(method)
            found |= set(re.findall(r'kwargs(?:\.pop|\.get|\.setdefault)?[(\[]"(\w+)"', source))
            found |= set(re.findall(r'"(\w+)" (?:not )?in \w*kwargs', source))
    return (found | set(inspect.signature(LlamaTokenizer.__init__).parameters)) - {"self", "kwargs"} - INTERNAL


def theirs(folder: Path, reference_processor: Callable[[Path], Any]) -> Found | str:
    """Return what the class makes of a folder, or its error."""
    try:
        processor = reference_processor(folder)
        tokenizer = processor.tokenizer
        # The class leaves a template of the tokenizer's to the tokenizer.
        templates = tokenizer if processor.chat_template is None else processor
        bos = tokenizer.bos_token
        return (
            templates.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True),
            [tokenizer(t, add_special_tokens=bos is None or not t.startswith(bos)).input_ids for t in TEXTS],
            [tokenizer.decode(ids, skip_special_tokens=True) for ids in ANSWERS],
            [getattr(processor, f"{kind}_token_id") for kind in ("image", "video")],
            tokenizer.eos_token_id,
        )
    except Exception as e:
        return f"{type(e).__name__}: {e}"


def ours(folder: Path) -> Found:
    chat = ChatProcessor.from_folder(folder)
    return (
        chat.render(MESSAGES),
        [chat.tokenizer.encode(text) for text in TEXTS],
        [chat.tokenizer.decode(list(ids)) for ids in ANSWERS],
        [chat.token_ids[f"{kind}_token"] for kind in ("image", "video")],
        chat.token_ids.get("eos_token"),
    )


def variants() -> list[tuple[str, Any]]:
    keys = sorted(own_keys() | set(FOREIGN) | set(VALUES) | set(json.loads((MINI / CONFIG).read_text())))
    return [(key, value) for key in keys for value in (*VALUES.get(key, (3,)), DROP)]


def write(folder: Path, key: str, value: Any) -> bool:
    """Set or drop a key of tokenizer_config.json; return whether that changes the file."""
    settings = json.loads((MINI / CONFIG).read_text())
    changed = {name: old for name, old in settings.items() if name != key}
    if value is not DROP:
        changed[key] = value
    (folder / CONFIG).write_text(json.dumps(changed))
    return bool(changed != settings)


def problem(
    folder: Path, where: str, key: str, base: Found, reference: Found | str, *, may_refuse: bool = False
) -> str:
    """Return what is wrong with what we make of a folder, or nothing."""
    try:
        found = ours(folder)
    except InvalidFile as e:
        if key not in str(e):
            return f"{where}: refused without its name: {e}"
        if isinstance(reference, str) or may_refuse:
            return ""
        return f"{where}: refused, and the class answers{' the same' if reference == base else ''}: {e}"
    except Exception as e:
        return f"{where}: {e!r}, and the class {reference if isinstance(reference, str) else 'answers'}"
    if isinstance(reference, str):
        return "" if key in READ else f"{where}: accepted, and the class says {reference[:120]}"
    names = ("prompt", "ids", "answers", "media tokens", "end token")
    differ = [name for name, a, b in zip(names, found, reference, strict=True) if a != b]
    return f"{where}: another {', '.join(differ)} than the class's" if differ else ""


def test_every_key_is_honoured_refused_or_without_effect(
    altered: Callable[..., Path], reference_processor: Callable[[Path], Any]
) -> None:
    folder = altered()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    base = theirs(folder, reference_processor)
    assert not isinstance(base, str), base
    assert base == ours(folder)
    wrong = []
    count = 0
    for key, value in variants():
        if not write(folder, key, value):
            continue
        count += 1
        where = f"{key} = {'dropped' if value is DROP else json.dumps(value)}"
        may_refuse = not isinstance(value, list | dict) and (key, value) in REFUSED
        reference = theirs(folder, reference_processor)
        wrong.append(problem(folder, where, key, base, reference, may_refuse=may_refuse))
    assert not any(wrong), "\n".join(filter(None, wrong))
    assert count > 100


FILES: dict[str, dict[str, str]] = {
    "a map that agrees": {"special_tokens_map.json": '{"bos_token": "<s>", "eos_token": "</s>"}'},
    "a map of another end": {"special_tokens_map.json": '{"eos_token": "<unk>"}'},
    "a map of objects": {"special_tokens_map.json": json.dumps({"cls_token": {**TOKEN, "special": True}})},
    "a map of new tokens": {"special_tokens_map.json": '{"sep_token": "<|new|>", "cls_token": "<think>"}'},
    "a map of extra tokens": {"special_tokens_map.json": '{"additional_special_tokens": ["<|extra|>", "<think>"]}'},
    "a map of more tokens": {"special_tokens_map.json": '{"extra_special_tokens": ["<|extra|>"]}'},
    "a map of named tokens": {"special_tokens_map.json": '{"extra_special_tokens": {"extra_token": "<|extra|>"}}'},
    "a map of a key for the model": {"special_tokens_map.json": '{"new_token": "<|new|>"}'},
    "a map of another picture": {"special_tokens_map.json": '{"image_token": "<unk>"}'},
    "an empty map": {"special_tokens_map.json": "{}"},
    "a map that is a list": {"special_tokens_map.json": "[]"},
    "added tokens": {"added_tokens.json": json.dumps({"[NEW]": VOCABULARY, "[new]": VOCABULARY + 1})},
    "added tokens with a hole": {"added_tokens.json": json.dumps({"[NEW]": VOCABULARY + 12})},
    "added special tokens": {
        "added_tokens.json": json.dumps({"<|extra|>": VOCABULARY}),
        "special_tokens_map.json": '{"extra_special_tokens": ["<|extra|>"]}',
    },
    "added tokens that are there": {"added_tokens.json": json.dumps({"<think>": MEDIA_IDS["video_end_token_id"] + 1})},
    "no added tokens": {"added_tokens.json": "{}"},
    "a template of the default's name": {"additional_chat_templates/default.jinja": "other {{ messages[0].content }}"},
    "another template": {"additional_chat_templates/tool_use.jinja": "tools"},
    "a template in the processor's file": {"processor_config.json": '{"chat_template": "nested"}'},
    "a template in the older file": {"chat_template.json": '{"chat_template": "older"}'},
    "two templates in the older file": {
        "chat_template.json": '{"chat_template": {"default": "older", "rag": "x"}}',
    },
    "an older file beside another template": {
        "chat_template.json": '{"chat_template": "older"}',
        "additional_chat_templates/tool_use.jinja": "tools",
    },
    "an older file without a template": {"chat_template.json": "{}"},
}
WITHOUT_TEMPLATE: dict[str, Any] = {
    "a template": "one {{ messages[0].content }}",
    "a list": [{"name": "default", "template": "listed"}, {"name": "rag", "template": "x"}],
    "a list of one": [{"name": "default", "template": "listed"}],
    "a list without a default": [{"name": "rag", "template": "x"}],
    "an object": {"default": "an object's", "rag": "x"},
    "an object without a default": {"rag": "x"},
    "an empty list": [],
    "null": None,
    "a number": 3,
}


def put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize("listed", [False, True], ids=["", "added_tokens_decoder"])
@pytest.mark.parametrize("case", FILES)
def test_the_files_beside_it(
    altered: Callable[..., Path], reference_processor: Callable[[Path], Any], case: str, listed: bool
) -> None:
    folder = altered(tokenizer={"added_tokens_decoder": {"0": {"content": "<unk>", "special": True}}} if listed else {})
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    base = theirs(folder, reference_processor)
    assert not isinstance(base, str), base
    put(folder, FILES[case])
    key = next(iter(FILES[case])).split("/")[0]
    assert not problem(folder, case, key, base, theirs(folder, reference_processor))


@pytest.mark.parametrize("beside", [{}, {"additional_chat_templates/default.jinja": "beside"}], ids=["alone", "beside"])
@pytest.mark.parametrize("case", WITHOUT_TEMPLATE)
def test_templates_in_the_tokenizer_s_file(
    altered: Callable[..., Path], reference_processor: Callable[[Path], Any], case: str, beside: dict[str, str]
) -> None:
    folder = altered()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    base = ours(folder)
    (folder / "chat_template.jinja").unlink()
    write(folder, "chat_template", WITHOUT_TEMPLATE[case])
    put(folder, beside)
    assert not problem(folder, case, "chat template", base, theirs(folder, reference_processor))


def test_the_classes_that_are_refused_are_those_that_transformers_has() -> None:
    known = {name for name in tokenization_auto.TOKENIZER_MAPPING_NAMES.values() if name}
    known |= {name for name in dir(transformers) if name.endswith(("Tokenizer", "TokenizerFast"))}
    assert {name.removesuffix("Fast") for name in known} - {LLAMA, *AS_IT_STANDS[:2]} == OTHER_CLASSES


def test_a_class_that_nothing_knows_is_named(altered: Callable[..., Path]) -> None:
    folder = altered()
    write(folder, "tokenizer_class", "Unheard-OfTokenizer")
    assert ChatProcessor.from_folder(folder).ignored == ((folder / CONFIG, "tokenizer_class"),)


@pytest.mark.parametrize("key", ["add_bos_token", "auto_map", "chat_template", "unsloth_version", "use_fast"])
def test_what_nothing_reads_is_named(altered: Callable[..., Path], key: str) -> None:
    folder = altered()
    assert ChatProcessor.from_folder(folder).ignored == ()
    write(folder, key, "a template" if key == "chat_template" else True)
    assert ChatProcessor.from_folder(folder).ignored == ((folder / CONFIG, key),)
