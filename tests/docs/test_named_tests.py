"""The tests that the serving guide names for what it promises are there."""

import re

from tests.paths import ROOT

GUIDE = ROOT / "docs" / "guides" / "serving.md"
NAMED = re.compile(r"`([\w/]+\.py)` \(((?:`\w+`(?:, )?)+)\)")


def test_every_row_of_the_table_names_tests_that_are_there() -> None:
    table = GUIDE.read_text().split("## What it defends against")[1]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 8
    for row in rows:
        held_by = row.split(" | ")[2]
        named = NAMED.findall(held_by)
        assert named, row
        for file, names in named:
            text = (ROOT / "tests" / "runtime" / file).read_text()
            for name in re.findall(r"`(\w+)`", names):
                assert f"def {name}(" in text, f"{file}: {name}"
