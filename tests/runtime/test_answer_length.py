"""The most tokens of an answer where nobody says how many: by the bundle's file, else by whether the model thinks."""

import json
import shutil
from types import SimpleNamespace
from typing import Any

import pytest

from ernie_export.common.errors import InvalidValue
from ernie_export.runtime.answer_length import DEFAULT_NEW_TOKENS, MAX_NEW_TOKENS, default_new_tokens, served_params
from ernie_export.runtime.preprocess import Preprocessor
from tests.paths import MINI

THINKING = "{%- set enable_thinking = enable_thinking | default(true) -%}"


@pytest.fixture
def make_model(tmp_path):
    """make_model(thinks, generation_config): a model with a preprocessor alone."""

    def make(thinks: bool = False, config: dict[str, Any] | None = None) -> Any:
        folder = tmp_path / "mini"
        shutil.copytree(MINI, folder)
        template = folder / "chat_template.jinja"
        if thinks:
            template.write_text(THINKING + template.read_text())
        (folder / "generation_config.json").unlink(missing_ok=True)
        if config is not None:
            (folder / "generation_config.json").write_text(json.dumps(config))
        return SimpleNamespace(preprocessor=Preprocessor.from_folder(folder))

    return make


@pytest.mark.parametrize(
    ("thinks", "config", "options", "expected"),
    [
        (False, None, {}, DEFAULT_NEW_TOKENS),
        (True, None, {}, MAX_NEW_TOKENS),
        (True, {"max_new_tokens": 77}, {}, 77),
        (False, {"max_new_tokens": 77}, {}, 77),
        (True, {"temperature": 0.7}, {}, MAX_NEW_TOKENS),
        (False, None, {"max_new_tokens": 5}, 5),
        (True, {"max_new_tokens": 77}, {"max_new_tokens": None}, None),
        (False, None, {"min_new_tokens": 2000}, 2000),
        (True, None, {"min_new_tokens": 5000}, 5000),
    ],
)
def test_the_length_of_a_servers_answer(make_model, thinks, config, options, expected):
    assert served_params(make_model(thinks, config), options).max_new_tokens == expected


def test_an_answer_alone_may_fill_the_context_with_thoughts(make_model):
    assert default_new_tokens(make_model(thinks=True), None, 0) is None


def test_more_tokens_at_least_than_the_file_allows_are_refused(make_model):
    with pytest.raises(InvalidValue, match="min_new_tokens: expected at most max_new_tokens"):
        served_params(make_model(config={"max_new_tokens": 77}), {"min_new_tokens": 78})
