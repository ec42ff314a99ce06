"""What the measurements of gpu_kernels.py share: widths, buffers, and a line of results."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from gpu_timing import Ceilings

NORM_MIN = 1e-12
STEP = 16  # tokens of the longest decode step that is measured: more are a prompt, whose engines run MoEDispatch


@dataclass(frozen=True)
class Shape:
    """Widths of one layer."""

    hidden: int
    experts: int
    widths: tuple[int, int]
    k: int
    heads: tuple[int, int]
    section: tuple[int, int, int]
    tokens: tuple[int, ...]
    sets: int  # inputs that take turns
    group: int  # values that share a scale


FULL = Shape(2560, 64, (1536, 512), 6, (20, 4), (22, 22, 20), (1, 8, 64, 512, 1024), 8, 128)
SMALL = Shape(32, 2, (32, 16), 1, (2, 1), (1, 1, 2), (2, STEP + 1), 1, 16)


class Bench:
    """A measurement at one shape on one device, beside what the device can do."""

    def __init__(self, torch: Any, device: str, dtype: Any, shape: Shape, ceilings: Ceilings) -> None:
        self.torch = torch
        self.device = device
        self.dtype = dtype
        self.shape = shape
        self.ceilings = ceilings

    def ceilings_row(self) -> Iterator[dict[str, Any]]:
        """What everything else is compared with."""
        name = self.torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
        yield {"what": "ceilings", "card": name, "dtype": str(self.dtype), **asdict(self.ceilings)}

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An output in which what was not written shows."""
        kind = getattr(self.torch, dtype)
        fill = float("nan") if kind.is_floating_point else 0
        return self.torch.full(shape, fill, dtype=kind, device=self.device)

    def plain(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An output as an engine allocates it; what is timed."""
        return self.torch.empty(shape, dtype=getattr(self.torch, dtype), device=self.device)

    def normal(self, *shape: int, scale: float = 1.0) -> Any:
        """Random numbers in the kernels' dtype."""
        return (self.torch.randn(*shape, device=self.device) * scale).to(self.dtype)

    def row(self, what: str, tokens: int, nbytes: float, flops: float, **timed: Any) -> dict[str, Any]:
        """One line of results."""
        floor = self.ceilings.floor(nbytes, flops)
        return {"what": what, "tokens": tokens, "bytes": nbytes, "flops": flops, "floor": floor, **timed} | {
            "of_floor": floor / timed["seconds"]
        }
