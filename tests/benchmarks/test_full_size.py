"""The full-size benchmark, run whole on mini-ernie: its numbers agree with one another, and it fills no disk."""

import json
import shutil

import full_size
import pytest
from click.testing import CliRunner

from tests.paths import MINI


@pytest.fixture
def run(tmp_path):
    """run(*options): the command's result on a copy of mini-ernie. Answers last half a second: fewer tokens may all
    have come before a busy machine reads the first.
    """

    def ran(*options):
        shutil.copytree(MINI, tmp_path / "made" / "checkpoint")
        arguments = [tmp_path / "made", "--precision", "fp32", "--tokens", 600, "--stream-bytes", 2**24, *options]
        return CliRunner().invoke(full_size.main, list(map(str, arguments)))

    return ran


def test_figures_of_the_mini_checkpoint(run, tmp_path):
    result = run("--output", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "out.json").read_text())
    assert abs(figures["bundle_bytes"] / figures["planned_bundle_bytes"] - 1) < 0.02
    assert figures["export"]["checkpoint_bytes"] < figures["bundle_bytes"]
    for answer in figures["answers"].values():
        share = answer["share_of_bandwidth"] * figures["bandwidth_bytes_per_second"]
        assert share == pytest.approx(answer["tokens_per_second"] * figures["bytes_per_token"])
        assert answer["seconds_to_first_text"] > 0
        assert answer["peak_anonymous_bytes"] > 20 * 2**20
        # Shared libraries count in part, the weights in full.
        assert answer["proportional_bytes"] < answer["peak_anonymous_bytes"] + answer["peak_file_bytes"]
    assert "decode tokens/s" in result.output


def test_some_of_the_disk_stays_free(run, tmp_path):
    result = run("--keep-free", 2**60)
    assert result.exit_code == 1 and "GB free" in result.output
    assert not (tmp_path / "made" / "bundle").exists()
