"""Command-line options that follow from the registered targets: their names, precisions and options.

They are made when a command runs, not when its module is imported, so that a target registered meanwhile has them.
"""

from collections.abc import Callable

import click

from ernie_export.exporter.targets import TARGETS, all_options

LAST = ("version", "help")  # parameters that end the list of --help


class TargetCommand(click.Command):
    """A command with further parameters that `parameters` makes at each call."""

    parameters: Callable[[], list[click.Parameter]]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own parameters and those of the targets, --version and --help last."""
        params = super().get_params(ctx)
        last = [parameter for parameter in params if parameter.name in LAST]
        return [*(parameter for parameter in params if parameter not in last), *self.parameters(), *last]


def with_target_options(parameters: Callable[[], list[click.Parameter]]) -> type[TargetCommand]:
    """Return the class of a command whose further parameters `parameters` makes."""
    return type("TargetCommand", (TargetCommand,), {"parameters": staticmethod(parameters)})


def target_option(text: str) -> click.Option:
    """Return the option --target, with the help `text`."""
    default = next(iter(TARGETS))
    return click.Option(["--target"], type=click.Choice(list(TARGETS)), default=default, show_default=True, help=text)


def describe_targets() -> str:
    """Return what each target is for."""
    return " ".join(f"{target.name}: {target.summary}" for target in TARGETS.values())


def precision_option() -> click.Option:
    """Return the option --precision: a choice of every target's."""
    names = {precision.name for target in TARGETS.values() for precision in target.precisions}
    by_default: dict[str, list[str]] = {}
    for target in TARGETS.values():
        by_default.setdefault(target.precision(None).name, []).append(target.name)
    usual, *others = by_default
    defaults = "; ".join([usual, *(f"{name} for {' and '.join(by_default[name])}" for name in others)])
    text = f"Of weights and activations.  [default: {defaults}]"
    return click.Option(["--precision"], type=click.Choice(sorted(names)), help=text)


def options_of_targets() -> list[click.Parameter]:
    """Return the options that only some targets have; their values are passed on by field name."""
    return [option.to_click(name, owners) for name, (option, owners) in all_options().items()]
