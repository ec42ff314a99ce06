"""The grammar of calls can be followed whatever the tags are: added tokens, special or not, or plain text."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ernie_export.runtime.constraints.compiler import GrammarCompiler
from ernie_export.runtime.preprocess.tokenizer import ChatTokenizer
from ernie_export.runtime.token_bytes import TokenBytes
from ernie_export.runtime.tool_calls import OPEN, find_tool_calls
from ernie_export.runtime.tool_grammar import calls_form
from tests.paths import MINI
from tests.runtime.test_constraints import EOS, VOCABULARY, walk

CITY = {"type": "object", "properties": {"city": {"enum": ["Lima", "Oslo"]}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": CITY}}


def tokenizer_with(folder: Path, tags: str) -> ChatTokenizer:
    """mini-ernie's tokenizer, whose tags of tools are added tokens, special ones, or no tokens at all."""
    shutil.copytree(MINI, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    content = json.loads((folder / "tokenizer.json").read_text())
    added = content["added_tokens"]
    if tags == "special":
        added = [token | {"special": token["special"] or "tool" in token["content"]} for token in added]
    elif tags == "text":
        added = [token for token in added if "tool" not in token["content"]]
    content["added_tokens"] = added
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return ChatTokenizer.from_folder(folder)


@pytest.mark.parametrize("tags", ["added", "special", "text"])
def test_a_call_can_be_written_whatever_its_tags_are(tmp_path, tags):
    tokenizer = tokenizer_with(tmp_path / "tokenizer", tags)
    assert tokenizer.is_added(OPEN) == (tags != "text")
    assert (tokenizer.special_id(OPEN) is not None) == (tags == "special")
    form = calls_form([TOOL], several=False, tags_are_tokens=tokenizer.is_added(OPEN))
    grammar = GrammarCompiler(tokenizer, VOCABULARY, [EOS]).compile(form)
    text, complete = walk(grammar, TokenBytes(tokenizer), np.random.default_rng(0))
    assert complete
    rest, (call,) = find_tool_calls(text.decode())
    assert not rest.strip() and call.name == "weather" and json.loads(call.arguments)["city"] in ("Lima", "Oslo")
