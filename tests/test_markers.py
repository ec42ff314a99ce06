"""The files and folders that tests/markers.py names are there, and the longest are the first."""

from pathlib import Path

import pytest

from tests.markers import ALONE, LONGEST, PATHS, marker_of, order_of
from tests.paths import ROOT


@pytest.mark.parametrize("name", sorted({*PATHS, *ALONE, *LONGEST}))
def test_what_is_named_is_there(name):
    assert (ROOT / name).exists()


def test_the_longest_files_begin_first():
    files = [ROOT / "tests/test_demo.py", *(ROOT / name for name in reversed(LONGEST))]
    assert sorted(files, key=order_of) == [*(ROOT / name for name in LONGEST), files[0]]
    assert all(marker_of(Path(ROOT / name)) for name in LONGEST), "make check would run it"
