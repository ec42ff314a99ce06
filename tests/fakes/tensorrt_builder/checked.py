"""Base of the fakes of TensorRT's classes: every use is held to the real bindings' signatures.

A fake names the class that it replaces. Setting what that class has no property of, or of another type, and
calling a method with other arguments than its signatures take, is an error; so is a method that it lacks.
"""

import functools
import re
from typing import Any

import tensorrt_bindings as real


class Checked:
    """Base of all fakes; `genuine` is the real class."""

    genuine: type

    def __init_subclass__(cls, genuine: type) -> None:
        own = dict(vars(cls))
        cls.genuine = genuine
        for name, value in own.items():
            if name.startswith("_"):
                continue
            if not hasattr(genuine, name):
                raise TypeError(f"{genuine.__name__} has no {name}")
            if callable(value):
                setattr(cls, name, held(getattr(genuine, name), value))

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            setter = getattr(self.genuine, name).fset
            (annotation,) = re.findall(r"arg1: (.+)\) -> (?:None|bool)", setter.__doc__)
            if not fits(annotation, value):
                raise TypeError(f"{self.genuine.__name__}.{name}: expected {annotation}, found {value!r}")
            name = f"_{name}"
        object.__setattr__(self, name, value)


def held(genuine: Any, function: Any) -> Any:
    """`function`, called only as `genuine` may be."""
    pattern = rf"^(?:\d+\. )?{genuine.__name__}\(self: \S+?(?:, (.*))?\) -> "
    signatures = re.findall(pattern, genuine.__doc__, re.MULTILINE)
    assert signatures, genuine.__doc__

    @functools.wraps(function)
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        if not any(takes(signature, arguments, named) for signature in signatures):
            raise TypeError(f"{genuine.__name__}({signatures}) called with {arguments} {named}")
        return function(self, *arguments, **named)

    return call


def takes(signature: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether a signature, the text between the parentheses, takes these arguments."""
    parameters = re.findall(r"(\w+): ([^=]+?)(?: = ([^,]+))?(?:, (?=\w+: )|$)", signature)
    given = dict(zip((name for name, _, _ in parameters), arguments)) | named
    if len(given) != len(arguments) + len(named) or given.keys() - {name for name, _, _ in parameters}:
        return False
    return all(fits(kind, given[name]) if name in given else default for name, kind, default in parameters)


def fits(annotation: str, value: Any) -> bool:
    """Whether a value may be given where the bindings' documentation has this annotation."""
    simple: dict[str, type | tuple[type, ...]] = {"str": str, "bool": bool, "float": (int, float), "int": int}
    if annotation in simple:
        return isinstance(value, simple[annotation])
    if annotation == "typing.SupportsInt":
        return hasattr(value, "__int__") and not isinstance(value, str)
    if annotation in ("typing_extensions.Buffer", "buffer"):
        try:
            return memoryview(value) is not None
        except TypeError:
            return False
    name = annotation.rsplit(".", 1)[-1]
    if name == "Dims":
        return isinstance(value, tuple | list) and all(type(size) is int for size in value)
    kind = getattr(real, name)
    return isinstance(value, kind) or (isinstance(value, Checked) and issubclass(value.genuine, kind))
