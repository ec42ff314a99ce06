"""Retired words stay out of package, tests, tools and pages: names, docstrings, comments and messages use the field's.

docs/glossary.md defines the words that took their place.
"""

import re

import pytest

from tests.paths import ROOT

# The word, as it stands within identifiers too, and what to say instead.
RETIRED = {
    "bank": "expert group, or text and vision experts",
    "banks": "expert groups",
    "barred": "masked or suppressed",
    "blamed": "translate_ort_errors, or what raised the error",
    "card": "GPU",
    "cards": "GPUs",
    "facts": "info",
    "farewell": "what the last write is",
    "likeliest": "most likely",
    "obey": "follow, or honour",
    "published": "hf layout, original revision, or released",
    "room": "package, memory, or space",
    "rooms": "packages",
    "slab": "column block",
    "slabs": "column blocks",
    "spelled": "written",
    "spelling": "layout or form",
    "spells": "writes",
    "spread": "run_parallel, or distribute",
    "standin": "fake",
    "told": "given, or emitted",
    "twin": "duplicate, or counterpart",
    "twins": "duplicates",
}
# (word, file): why it may stand there.
ALLOWED = {
    ("card", "tests/benchmarks/test_gpu_dry.py"): "a key of older results",
    ("card", "tests/docs/test_gpu_predictions.py"): "a key of older results",
    ("card", "tools/docs/gpu.py"): "a key of older results",
    ("spread", "tests/benchmarks/test_serve_load.py"): "a function of the benchmark",
}
FILES = sorted(
    path
    for pattern in ("ernie_export/**/*.py", "tests/**/*.py", "tools/**/*.py", "docs/**/*.md")
    for path in ROOT.glob(pattern)
    if path.name not in ("test_vocabulary.py", "glossary.md")
)
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def words(text: str) -> set[str]:
    """Return the words of a text in lower case; snake_case and CamelCase are taken apart."""
    return {word.lower() for word in WORD.findall(text)}


WORDS = {path: words(path.read_text()) for path in FILES}


@pytest.mark.parametrize("word", RETIRED)
def test_a_retired_word_is_not_used(word):
    assert len(FILES) > 400
    using = [path.relative_to(ROOT).as_posix() for path, found in WORDS.items() if word in found]
    assert [path for path in using if (word, path) not in ALLOWED] == [], f"say {RETIRED[word]}"
    assert {path for allowed, path in ALLOWED if allowed == word} <= set(using), "an exception that nothing needs"


@pytest.mark.parametrize("text", ["def reject_twins(", '"""No Twins."""', "class TwinReader", "error: a twin,"])
def test_words_are_found_in_names_docstrings_and_messages(text):
    assert words(text) & {"twin", "twins"}


def test_a_word_within_another_is_not_found():
    assert not words("twinkle, artefacts, standing") & RETIRED.keys()
