"""The trainer's command refuses options that contradict each other, before it writes anything."""

import pytest
import train_mini
from click.testing import CliRunner


@pytest.mark.parametrize("options", [("--phase", "2"), ("--start", ".")], ids=["no start", "no phase"])
def test_a_later_phase_and_where_it_starts_go_together(tmp_path, options):
    result = CliRunner().invoke(train_mini.main, ["--out", str(tmp_path / "made"), *options])
    assert result.exit_code == 2 and "expected with --phase 2 or 3" in result.output
    assert not (tmp_path / "made").exists()


def test_a_phase_does_not_overwrite_what_it_starts_from(tmp_path):
    options = ["--out", str(tmp_path), "--phase", "2", "--start", str(tmp_path)]
    result = CliRunner().invoke(train_mini.main, options)
    assert result.exit_code == 2 and "expected another folder" in result.output
    assert not list(tmp_path.iterdir())
