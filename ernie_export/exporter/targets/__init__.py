"""The targets of an export: a registry of objects, each of which says everything about one runtime."""

from collections.abc import Mapping

from ernie_export.common.errors import InvalidValue
from ernie_export.exporter.targets.onnx import ONNX, ONNX_PORTABLE
from ernie_export.exporter.targets.options import CommandLineOption, TargetOptions, declared_options
from ernie_export.exporter.targets.target import Target
from ernie_export.exporter.targets.tensorrt import TensorRT
from ernie_export.exporter.targets.trt_rtx import TensorRTForRtx
from ernie_export.graphs.precision import Precision

TARGETS: dict[str, Target] = {}  # by name, in the order of --help; the default first


def register(target: Target) -> None:
    """Add a target; commands and `export` then know it by its name."""
    TARGETS[target.name] = target


def find_target(name: str) -> Target:
    """Return the target `name`. Raises InvalidValue for an unknown one."""
    if name not in TARGETS:
        raise InvalidValue("--target", " or ".join(TARGETS), name)
    return TARGETS[name]


def all_options() -> dict[str, tuple[CommandLineOption, list[str]]]:
    """Return every target's options by field name, each with the names of the targets that have it."""
    options: dict[str, tuple[CommandLineOption, list[str]]] = {}
    for target in TARGETS.values():
        for name, option in declared_options(target.options_type).items():
            options.setdefault(name, (option, []))[1].append(target.name)
    return options


def make_options(target: Target, values: Mapping[str, object]) -> TargetOptions:
    """Return the options of `target` with these values by field name; the others have their defaults.

    Raises InvalidValue for an option that other targets have.
    """
    for name in values:
        option, owners = all_options()[name]
        if target.name not in owners:
            raise InvalidValue(option.flag, f"--target {' or '.join(owners)} with it", f"--target {target.name}")
    return target.options_type(**values)


def check_calibration(target: Target, precision: Precision) -> None:
    """Raise InvalidValue for a precision that leaves calibration nothing to do."""
    if not precision.takes_calibration:
        names = [p.name for p in target.precisions if p.takes_calibration]
        expected = f"--precision {' or '.join(names)} with it" if names else f"another target than {target.name}"
        raise InvalidValue("--calibrate", expected, precision.name)


for _target in (ONNX, ONNX_PORTABLE, TensorRT(), TensorRTForRtx()):
    register(_target)
