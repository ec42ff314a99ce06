"""tokenizer.model of the original revision, against what transformers makes of it by its converter's steps.

A small SentencePiece model is trained here, with the kinds of pieces that the released one has: bytes, control pieces,
digits and conversation marks as user-defined pieces; media tokens stand beside it.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, LlamaTokenizer

from ernie_export.graphs.checkpoint.original.tokenizer import MEDIA, NAMED, from_sentencepiece, translate_tokenizer
from ernie_export.runtime.preprocess.tokenizer import ChatTokenizer

DIGITS = [str(digit) for digit in range(10)]
BESIDE = ["<|IMAGE_PLACEHOLDER|>", "<|AUDIO_PLACEHOLDER|>", "<|LOC_0|>"] + [
    f"<|{kind}_{end}|>" for kind in ("IMAGE", "VIDEO") for end in ("START", "END")
]
TEMPLATE = "<|IMAGE_START|><|image@placeholder|><|IMAGE_END|><|VIDEO_START|><|video@placeholder|><|VIDEO_END|>"
SENTENCES = [
    "the red triangle is left of the blue circle",
    "User: what colour is the circle in picture 12?\nAssistant: it is blue",
    "Größe und Übermaß, naïve café, Ελληνικά, 图片里有什么? 这是一个红色的三角形",
]


def train(folder: Path) -> int:
    """Write tokenizer.model; returns its number of pieces."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 30),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=440,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=[*DIGITS, "<|end_of_sentence|>", "<|begin_of_sentence|>", "<mask:1>", "<mask:7>"],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).vocab_size()


def write(folder: Path, decoder: bool, listed: bool) -> dict[str, int]:
    """The tokenizer files of the original layout; returns the ids that config.json would name."""
    count = train(folder)
    special = NAMED | ({"additional_special_tokens": BESIDE} if listed else {})
    config: dict[str, Any] = special | {
        "tokenizer_class": "Ernie4_5_VLTokenizer",
        "auto_map": {"AutoTokenizer": ["processing_ernie4_5_vl.Ernie4_5_VLTokenizer", None]},
        "chat_template": TEMPLATE,
        "model_max_length": 131072,
    }
    ids = {text: count + place for place, text in enumerate(BESIDE)}
    if decoder:
        config["added_tokens_decoder"] = {
            str(index): {"content": text, "normalized": False, "special": True} for text, index in ids.items()
        }
    else:
        (folder / "added_tokens.json").write_text(json.dumps(ids))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return {f"{key}_id": ids.get(text, count + len(BESIDE)) for key, text in MEDIA.items()}


def convert(folder: Path, output: Path) -> None:
    """What transformers' converter does, by the same calls."""
    kept = {key: NAMED[key] for key in ("pad_token", "cls_token", "sep_token", "mask_token")}
    tokenizer = LlamaTokenizer.from_pretrained(folder, add_bos_token=False, add_prefix_space=False, **kept)
    tokenizer.init_kwargs.pop("auto_map", None)
    tokenizer.add_tokens([AddedToken(digit, normalized=False, special=False) for digit in DIGITS])
    first = output / "first"
    tokenizer.save_pretrained(first)
    config = json.loads((first / "tokenizer_config.json").read_text())
    extra = [token for token in config["extra_special_tokens"] if token not in ("<s>", "</s>", *DIGITS)]
    config |= MEDIA | {"extra_special_tokens": [*extra, *MEDIA.values(), "<think>", "</think>"]}
    (first / "tokenizer_config.json").write_text(json.dumps(config))
    AutoTokenizer.from_pretrained(first).save_pretrained(output)


@pytest.fixture(scope="module", params=["map listed", "map", "decoder listed", "decoder"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, bool]:
    """Our translation and the converter's, each a folder, and whether the checkpoint lists its special tokens."""
    folder, ours, theirs = (tmp_path_factory.mktemp(name) for name in ("original", "ours", "theirs"))
    listed = "listed" in request.param
    ids = write(folder, "decoder" in request.param, listed)
    config: Any = SimpleNamespace(text=SimpleNamespace(vocab_size=460, max_positions=4096), **ids)
    for name, content in translate_tokenizer(folder, config).items():
        (ours / name).write_bytes(content)
    convert(folder, theirs)
    return ours, theirs, listed


def test_vocabulary_and_merges_are_the_converter_s(both: tuple[Path, Path, bool]) -> None:
    ours, theirs = (json.loads((folder / "tokenizer.json").read_text()) for folder in both[:2])
    assert len(ours["model"]["merges"]) > 100
    assert ours["model"] == theirs["model"]
    for step in ("pre_tokenizer", "decoder", "normalizer"):
        assert ours[step] == theirs[step]


def test_added_tokens_are_the_converter_s(both: tuple[Path, Path, bool]) -> None:
    def added(folder: Path) -> dict[str, tuple[int, bool]]:
        tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
        return {token["content"]: (token["id"], token["special"]) for token in tokens}

    ours = added(both[0])
    theirs = added(both[1])
    if both[2]:
        # Where special tokens are listed, transformers 5.23 forgets the model's user-defined pieces, which
        # SentencePiece never splits. The version that the converter ran with kept them: it takes digits off their list.
        assert ours.pop("<mask:7>") == (16, False)
    assert ours == theirs


TEXTS = [
    "",
    " ",
    *SENTENCES,
    "Picture 1:<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>What is it?",
    "<|begin_of_sentence|>User: 2048 x 1.5<|end_of_sentence|>\nAssistant: <think>\n\n</think>\n\n",
    "<|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_PLACEHOLDER|><|VIDEO_END|><|LOC_0|><|AUDIO_PLACEHOLDER|>",
    "  two  spaces\t\ttabs\r\nlines   ",
    "🙂🇩🇪 中文 mixed with 0x1F and <s> </s> <unk> ▁",
]


def same(both: tuple[Path, Path, bool], text: str) -> None:
    ours = ChatTokenizer.from_folder(both[0])
    theirs = AutoTokenizer.from_pretrained(both[1])
    ids = ours.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_texts_are_the_converter_s(both: tuple[Path, Path, bool]) -> None:
    for text in TEXTS:
        same(both, text)
    assert AutoTokenizer.from_pretrained(both[0])(TEXTS[-1]) == AutoTokenizer.from_pretrained(both[1])(TEXTS[-1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tokenizer]:
    """One model, run by SentencePiece and as translated."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return model, from_sentencepiece(folder / "tokenizer.model")


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("the redcirl 0123\n图片ü🙂<>|"), max_size=60))
def test_any_text_is_sentencepiece_s(trained: tuple[Any, Tokenizer], text: str) -> None:
    """And that is also how the original code cuts a text."""
    assert trained[1].encode(text).ids == trained[0].encode(text)
