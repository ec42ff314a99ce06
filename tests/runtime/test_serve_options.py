"""The command line of ernie-serve: what each option sets, and that its defaults are those of the settings."""

from dataclasses import replace
from pathlib import Path

import click
import pytest

from ernie_export.common.errors import InvalidFile, InvalidValue
from ernie_export.runtime.cli.serve import ServeOptions, command
from ernie_export.runtime.scheduler_config import SchedulerConfig
from ernie_export.runtime.serving.http.guard import read_keys
from ernie_export.runtime.serving.http.settings import Settings
from ernie_export.runtime.serving.media_limits import MediaLimits

BUNDLE = Path("bundle")


def parsed(*arguments: str) -> ServeOptions:
    """Return the options of a command line."""
    values = command.make_context("ernie-serve", ["bundle", *arguments]).params
    del values["bundle"]
    return ServeOptions(**values)


def test_without_options_the_defaults_hold():
    options = parsed()
    assert options == ServeOptions()
    assert options.settings(BUNDLE, ()) == Settings("bundle")
    assert options.scheduler_config() == replace(SchedulerConfig(), max_queue=80)


def test_every_field_is_an_option():
    options = {parameter.name for parameter in command.params if isinstance(parameter, click.Option)}
    assert options == set(vars(ServeOptions()))


@pytest.mark.parametrize("name", ["--max-num-seqs", "--rows"])
def test_sequences_and_queue_together_are_admitted(name):
    options = parsed(name, "3", "--queue", "4")
    assert options.scheduler_config().max_num_seqs == 3
    assert options.scheduler_config().max_queue == options.settings(BUNDLE, ()).max_requests == 7


def test_media_options_are_the_media_limits():
    media = ["--max-media", "2", "--max-pixels", "300", "--max-frames", "40", "--max-seconds", "5.5"]
    assert parsed(*media).settings(BUNDLE, ()).media == MediaLimits(2, 300, 40, 5.5)


@pytest.mark.parametrize(
    ("arguments", "hosts"),
    [
        ([], ("localhost", "127.0.0.1", "[::1]")),
        (["--allowed-host", "Model.Example"], ("localhost", "127.0.0.1", "[::1]", "model.example")),
        (["--host", "0.0.0.0"], None),
        (["--host", "0.0.0.0", "--allowed-host", "a"], ("localhost", "127.0.0.1", "[::1]", "a")),
    ],
)
def test_hosts_that_may_be_called(arguments, hosts):
    assert parsed(*arguments).settings(BUNDLE, ()).hosts == hosts


def test_an_option_out_of_range_is_refused_by_name():
    with pytest.raises(InvalidValue) as caught:
        parsed("--timeout", "0").settings(BUNDLE, ())
    assert caught.value.field == "timeout"


@pytest.mark.parametrize("text", ["", "short", "with a space inside", "é" * 20])
def test_keys_that_are_none_or_can_be_guessed_are_refused(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text + "\n")
    with pytest.raises(InvalidFile) as caught:
        read_keys(path)
    assert caught.value.path == path
