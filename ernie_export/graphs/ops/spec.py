"""What every operator of the domain `ernie` declares about itself."""

from dataclasses import dataclass

DOMAIN = "ernie"
OPSET = 24  # standard operators in the bodies: TensorScatter and in-place KV caches came with 24


@dataclass(frozen=True)
class OpSpec:
    """The name and the ordered inputs, outputs and attributes of one operator; every call is checked against it."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]
