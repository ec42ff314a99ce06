"""Which ONNX function bodies of our operators a target's graphs carry."""

from collections.abc import Callable
from dataclasses import dataclass, replace

# Takes the graph's dtype in ONNX's text form (float, float16, bfloat16); returns functions in that form.
FunctionTexts = Callable[[str], list[str]]


@dataclass(frozen=True)
class OpBodies:
    """The function bodies of our operators for one runtime.

    Attributes:
        name: The runtime, for people.
        functions: For each package of operators, what makes the texts of its functions.
        inlined: Whether bodies stand in place of their calls; what is then left of our operators are plugins.
    """

    name: str
    functions: tuple[FunctionTexts, ...]
    inlined: bool = False

    def replacing(self, name: str, old: FunctionTexts, new: FunctionTexts) -> "OpBodies":
        """Return these bodies under another name, with one package's functions exchanged."""
        return replace(self, name=name, functions=tuple(new if each is old else each for each in self.functions))

    def texts(self, dtype: str) -> list[str]:
        """Return the functions' texts for graphs of `dtype`."""
        return [text for functions in self.functions for text in functions(dtype)]
