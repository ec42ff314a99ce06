"""The original layout's translation, against the transformers class that the converter fills."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Ernie4_5_VLMoeConfig

from ernie_export.common.json_fields import JsonObject
from ernie_export.graphs.checkpoint.original.config import translate

RELEASED = json.loads((Path(__file__).parents[1] / "graphs" / "original_config.json").read_text())


def loaded(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the class holds of a translated document, without the bookkeeping that the converter drops."""
    (folder / "config.json").write_text(json.dumps(translate(JsonObject(Path("config.json"), "", document))))
    config = Ernie4_5_VLMoeConfig.from_pretrained(folder).to_dict()
    return without_bookkeeping(config)


def without_bookkeeping(config: dict[str, Any]) -> dict[str, Any]:
    dropped = ("_name_or_path", "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "dtype")
    return {key: value for key, value in config.items() if key not in (*dropped, "initializer_range")}


ROPE = {"rope_type": "default", "rope_theta": 500000.0, "mrope_section": [22, 22, 20]}


def test_the_released_model_is_the_class_s_own(tmp_path: Path) -> None:
    # The class's defaults are the released model; the converter adds the sections of the rotary frequencies.
    expected = Ernie4_5_VLMoeConfig(text_config={"rope_parameters": ROPE}).to_dict()
    assert loaded(RELEASED, tmp_path) == without_bookkeeping(expected)


@pytest.mark.parametrize("ends", [[27, 27], [19, 19]], ids=str)
@pytest.mark.parametrize("starts", [[1, 1], [2, 3]], ids=str)
def test_sparse_layers_are_the_converter_s(tmp_path: Path, starts: list[int], ends: list[int]) -> None:
    document = RELEASED | {"moe_layer_start_index": starts, "moe_layer_end_index": ends, "moe_layer_interval": 2}
    found = loaded(document, tmp_path)["text_config"]["mlp_layer_types"]
    # As the converter has it: from the least start to the greatest end.
    inside = range(min(starts), max(ends) + 1)
    assert found == ["sparse" if layer in inside and (layer + 1) % 2 == 0 else "dense" for layer in range(28)]
