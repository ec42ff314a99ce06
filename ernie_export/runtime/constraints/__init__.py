"""Constrained decoding: at each step, the tokens with which an answer can still have the form asked for.

- `compiler`: from a form (`StructuredOutputs`) to a grammar over the tokenizer's vocabulary, by llguidance.
- `grammar`: the state of one answer within it.
- `faults`: where in a JSON schema that was refused the fault lies.
- `prefetch`: masks computed while the model computes.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenMask:
    """The tokens that may follow, as the smaller of two lists.

    Attributes:
        ids: Token ids int64 (n,), ascending.
        forbidden: Whether `ids` are those that may not follow.
    """

    ids: NDArray[np.int64]
    forbidden: bool


class Constraint(Protocol):
    """The state of one answer within its form.

    Attributes:
        name: How the request names the form, for errors.
    """

    name: str

    @property
    def finished(self) -> bool:
        """Whether the answer is complete, and nothing can be added to it."""
        ...

    def prepare(self) -> None:
        """Compute the next mask ahead, in any thread, but not while another method runs."""
        ...

    def mask(self) -> TokenMask | None:
        """Return the tokens that may follow; None for all. Raises InvalidValue for a form that takes too long."""
        ...

    def accept(self, token: int) -> None:
        """Go on to the state after `token`, which the mask has allowed."""
        ...
