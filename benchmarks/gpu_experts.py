"""Random expert groups as the kernels take them, in the kernels' dtype, in int4 and in fp8, for gpu_kernels.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpu_bench import Bench


@dataclass(frozen=True)
class ExpertGroup:
    """An expert group as kernels take it. expert: gate_up and down of one, float32; nbytes: of one as stored."""

    inputs: tuple[Any, ...]
    expert: Callable[[int], tuple[Any, Any]]

    @property
    def nbytes(self) -> int:
        return sum(tensor[0].nbytes for tensor in self.inputs[2:])


class ExpertBench(Bench):
    """A measurement with expert groups."""

    def expert_group(self, width: int) -> ExpertGroup:
        """gate (H, E) and bias (E,) in float32; gate_up (E, 2I, H), down (E, H, I)."""
        hidden = self.shape.hidden
        experts = self.shape.experts
        gate_up = self.normal(experts, 2 * width, hidden, scale=hidden**-0.5)
        down = self.normal(experts, hidden, width, scale=width**-0.5)
        gate = self.torch.randn(hidden, experts, device=self.device) * hidden**-0.5
        bias = self.torch.zeros(experts, device=self.device)
        return ExpertGroup((gate, bias, gate_up, down), lambda expert: (gate_up[expert].float(), down[expert].float()))

    def int4(self, expert_group: ExpertGroup) -> ExpertGroup:
        """The expert group in quantized values of 4 bits, each group rounded to the range of its largest value."""

        def packed(numbers: Any) -> Any:
            qweight = (numbers.round() + 8).to(self.torch.uint8)
            return qweight[..., 0::2] | qweight[..., 1::2] << 4

        def unpacked(qweight: Any) -> Any:
            return self.torch.stack([qweight & 15, qweight >> 4], -1).flatten(-2).float() - 8

        return self.stored(expert_group, 7.0, packed, unpacked)

    def fp8(self, expert_group: ExpertGroup) -> ExpertGroup:
        """The expert group in e4m3 numbers, the largest of a group at the largest of them."""
        kind = self.torch.float8_e4m3fn
        return self.stored(
            expert_group, 448.0, lambda numbers: numbers.to(kind), lambda qweight: qweight.view(kind).float()
        )

    def stored(
        self, expert_group: ExpertGroup, largest: float, pack: Callable[[Any], Any], unpack: Callable[[Any], Any]
    ) -> ExpertGroup:
        """The expert group in quantized values and scales; `unpack` takes the bytes that `pack` makes, as uint8."""
        torch = self.torch
        group = self.shape.group
        gate, bias, *weights = expert_group.inputs
        inputs = [gate, bias]
        for weight in weights:
            qweight = []
            scales = []
            for rows in weight:  # an expert at a time, since float32 takes room
                grouped = rows.float().reshape(len(rows), -1, group)
                scale = (grouped.abs().amax(-1) / largest).clamp(min=1e-8).to(self.dtype)
                scales.append(scale)
                qweight.append(pack((grouped / scale.float()[..., None]).flatten(1).clamp(-largest, largest)))
            inputs += torch.stack([code.view(torch.uint8) for code in qweight]).view(torch.int32), torch.stack(scales)

        def expert(number: int) -> tuple[Any, Any]:
            def meant(qweight: Any, scales: Any) -> Any:
                numbers = unpack(qweight[number].view(torch.uint8))
                return (numbers.reshape(*scales[number].shape, group) * scales[number].float()[..., None]).flatten(1)

            return meant(*inputs[2:4]), meant(*inputs[4:6])

        return ExpertGroup(tuple(inputs), expert)
