"""A checkpoint's generation_config.json as defaults of a server."""

import json

import pytest

from ernie_export.common.errors import InvalidFile
from ernie_export.runtime.generation_config import GenerationDefaults


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, GenerationDefaults()),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.8}, GenerationDefaults()),
        ({"do_sample": True}, GenerationDefaults(temperature=1.0)),
        ({"temperature": 0.2, "top_p": 0.8}, GenerationDefaults(temperature=0.2, top_p=0.8)),
        (
            {
                "do_sample": True,
                "temperature": 0.6,
                "top_k": -1,
                "min_p": 0.1,
                "max_new_tokens": 2048,
                "eos_token_id": 2,
            },
            GenerationDefaults(temperature=0.6, min_p=0.1, max_new_tokens=2048),
        ),
        ({"do_sample": False, "repetition_penalty": 1.1}, GenerationDefaults(repetition_penalty=1.1)),
        ({"temperature": None, "top_p": None}, GenerationDefaults()),
    ],
)
def test_values_of_a_file(tmp_path, config, expected):
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert GenerationDefaults.choose("auto", tmp_path) == expected


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"do_sample": "yes"}, "do_sample"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_a_malformed_value_is_named(tmp_path, config, key):
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidFile) as refused:
        GenerationDefaults.choose("auto", tmp_path)
    assert refused.value.key == key


def test_the_choices(tmp_path):
    assert GenerationDefaults.choose("auto", tmp_path) == GenerationDefaults()  # no file
    assert GenerationDefaults.choose("vllm", tmp_path) == GenerationDefaults(temperature=1.0)
    with pytest.raises(InvalidFile):
        GenerationDefaults.choose(str(tmp_path / "none.json"), tmp_path)
    (tmp_path / "mine.json").write_text('{"max_new_tokens": 5}')
    chosen = GenerationDefaults.choose(str(tmp_path / "mine.json"), tmp_path)
    assert chosen == GenerationDefaults(max_new_tokens=5, is_limit=True)
