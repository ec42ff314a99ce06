"""Options of a target, declared once: the fields of a dataclass, each with the command-line option that sets it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

import click


@dataclass(frozen=True)
class CommandLineOption:
    """The option of ernie-export that sets a field.

    Attributes:
        flag: As a user types it, such as "--max-batch".
        help: What it means; the names of its targets are put before it.
        value_type: What click makes of its value; None for text.
        metavar: The value's name in the help; None leaves it to click.
        is_flag: Whether it has no value, and sets the field to True.
    """

    flag: str
    help: str
    value_type: click.ParamType[Any] | None = None
    metavar: str | None = None
    is_flag: bool = False

    def to_click(self, name: str, targets: list[str]) -> click.Option:
        """Return the option for click, whose value is passed on as `name`; it is None if the user leaves it out."""
        text = f"{', '.join(targets)}: {self.help}"
        if self.is_flag:
            return click.Option([self.flag, name], is_flag=True, default=None, help=text)
        return click.Option([self.flag, name], type=self.value_type, metavar=self.metavar, help=text)


@dataclass(frozen=True)
class TargetOptions:
    """What a user may ask of a target beside its precision. This one has no options."""


def option(default: Any, declared: CommandLineOption) -> Any:
    """Return a dataclass field with this default that `declared` sets."""
    return field(default=default, metadata={"option": declared})


def declared_options(options_type: type[TargetOptions]) -> Mapping[str, CommandLineOption]:
    """Return the command-line options of a dataclass of options by field name."""
    return {f.name: cast(CommandLineOption, f.metadata["option"]) for f in fields(options_type)}
