"""The files and folders that tests/markers.py names are there, and the longest are the first."""

import sys
from pathlib import Path

import pytest

from tests.markers import ALONE, LONGEST, NOT_FAST, PATHS, marker_of, order_of
from tests.paths import ROOT


@pytest.mark.parametrize("name", sorted({*PATHS, *ALONE, *LONGEST}))
def test_what_is_named_is_there(name):
    assert (ROOT / name).exists()


def test_the_longest_files_begin_first():
    files = [ROOT / "tests/test_demo.py", *(ROOT / name for name in reversed(LONGEST))]
    assert sorted(files, key=order_of) == [*(ROOT / name for name in LONGEST), files[0]]
    assert all(marker_of(Path(ROOT / name)) for name in LONGEST), "make check would run it"


def test_a_fast_run_imports_nothing_that_takes_long(request):
    """Every worker has imported all fast tests by now: a file that needs one of these lacks its line in PATHS."""
    if not request.config.getoption("--fast"):
        pytest.skip("a run of all tests imports them")
    assert [name for name in NOT_FAST if name in sys.modules] == []
