"""Part b of gpu.py: the plugins' kernels at the released widths, against PyTorch and against what the card can do.

    python benchmarks/gpu_kernels.py --device cuda
    python benchmarks/gpu_kernels.py --device cuda --only sweep --seconds 60
    python benchmarks/gpu_kernels.py --device cpu --small       (Triton's interpreter, toy widths: a dry run)

Expert dispatch is run with weights in the kernels' dtype, in int4 and in fp8, whose bytes are what is counted. Prints
one JSON object a line. `floor` is the larger of the bytes that must move over the measured copy rate and of the
operations over the measured rate of matrix products; `of_floor` is floor over time. Errors are norms against float32
arithmetic on the same rounded weights, or on what the quantized values stand for; `choice_agreed` is the fraction of
tokens whose experts are those of torch.topk. One token comes first, then more. `sweep` times every tactic of the two
stages that read the experts' weights, alone: what TensorRT would choose by.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
from gpu_rows import emit

NORM_MIN = 1e-12


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


FULL = Shape(2560, 64, (1536, 512), 6, (20, 4), (22, 22, 20), (1, 8, 64, 1024), 8, 128)
SMALL = Shape(32, 2, (32, 16), 1, (2, 1), (1, 1, 2), (2,), 1, 16)


@dataclass(frozen=True)
class ExpertGroup:
    """An expert group as kernels take it. expert: gate_up and down of one, float32; nbytes: of one as stored."""

    inputs: tuple[Any, ...]
    expert: Callable[[int], tuple[Any, Any]]

    @property
    def nbytes(self) -> int:
        return sum(tensor[0].nbytes for tensor in self.inputs[2:])


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--small", is_flag=True, help="Toy widths, for a dry run.")
@click.option("--only", multiple=True, type=click.Choice(["moe", "rope", "sweep"]))
@click.option("--seconds", default=60.0, show_default=True, help="For the sweep, which stops there.")
def main(device: str, small: bool, only: tuple[str, ...], seconds: float) -> None:
    """Measure and print."""
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before a kernel is imported
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import torch

    torch.set_grad_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    # The interpreter's bfloat16 product is wrong.
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    bench = Bench(torch, device, dtype, SMALL if small else FULL, small)
    measures = {"moe": bench.moe_rows, "rope": bench.rope_rows, "sweep": partial(bench.sweep_rows, seconds)}
    for name in ("ceilings", *(only or measures)):
        for row in guarded(name, measures.get(name, bench.ceilings_row)):
            emit(row, "kernels")


def guarded(name: str, measure: Callable[[], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The rows of one measurement; where it fails, what failed, and the others go on."""
    try:
        yield from measure()
    except Exception as e:
        traceback.print_exc()
        yield {"what": name, "error": f"{type(e).__name__}: {e}"}


class Bench:
    """What the measurements share."""

    def __init__(self, torch: Any, device: str, dtype: Any, shape: Shape, small: bool) -> None:
        from gpu_timing import Ceilings

        self.torch = torch
        self.device = device
        self.dtype = dtype
        self.shape = shape
        torch.manual_seed(0)
        self.ceilings = Ceilings.measured(device, dtype, small)

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

    def rope_rows(self) -> Iterator[dict[str, Any]]:
        """Multimodal RoPE of q and k, one launch; q is scaled for attention in it."""
        from gpu_timing import relative_error, seconds

        from ernie_export.graphs.ops.mrope.launch import rope
        from ernie_export.graphs.ops.mrope.plugin import kernel_plugin
        from ernie_export.graphs.ops.mrope.reference import attention_scale, axes, inverse_frequencies, rotate

        torch = self.torch
        shape = self.shape
        size = 2 * sum(shape.section)
        tables = inverse_frequencies(size, 5e5), axes(shape.section)
        inv_freq, pair_axes = (torch.from_numpy(table).to(self.device) for table in tables)
        for tokens in shape.tokens:
            sets = [
                tuple(self.normal(1, tokens, heads * size) for heads in shape.heads)
                + (torch.randint(0, 4096, (3, 1, tokens), device=self.device),)
                for _ in range(shape.sets)
            ]

            def call(q: Any, k: Any, positions: Any, empty: Any, tactic: int = 0) -> list[Any]:
                return rope(q, k, positions, inv_freq, pair_axes.int(), shape.heads, empty, tactic)

            q, k, positions = sets[0]
            by_head = q.float().cpu().numpy().reshape(1, tokens, shape.heads[0], size)
            rotated = rotate(by_head, positions.cpu().numpy(), *tables) * attention_scale(size)
            expected = torch.from_numpy(rotated).reshape(q.shape)
            errors = []
            times = []
            for tactic in range(len(kernel_plugin().tactics)):
                found, _ = call(q, k, positions, self.empty, tactic)
                errors.append(relative_error(found.cpu(), expected))
                times.append(seconds([partial(call, *s, self.plain, tactic) for s in sets], self.device))
            nbytes = 2 * (q.nbytes + k.nbytes) + positions.nbytes + inv_freq.nbytes + 4 * len(pair_axes)
            pytorch = seconds([partial(self.torch_rope, *s, inv_freq, pair_axes) for s in sets], self.device)
            yield self.row("rope", tokens, nbytes, 0, error=max(errors), seconds=min(times), pytorch=pytorch)

    def torch_rope(self, q: Any, k: Any, positions: Any, inv_freq: Any, axes: Any) -> tuple[Any, Any]:
        """The same in PyTorch's operators."""
        angles = positions[axes.long(), :, :].permute(1, 2, 0).float() * inv_freq
        cos = angles.cos()[:, :, None]
        sin = angles.sin()[:, :, None]

        def turn(x: Any, scale: float) -> Any:
            even, odd = x.float().reshape(*x.shape[:2], -1, len(inv_freq), 2).unbind(-1)
            turned = self.torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1)
            return (turned * scale).reshape(x.shape).to(x.dtype)

        return turn(q, (2 * len(inv_freq)) ** -0.5), turn(k, 1)

    def moe_rows(self) -> Iterator[dict[str, Any]]:
        """Expert dispatch: text experts alone, as decode has it, and both expert groups, half of the tokens each."""
        shape = self.shape
        text, vision = (self.expert_group(width) for width in shape.widths)
        blocks = list(self.torch_blocks(text, vision))
        ways = {"": ("", (text, vision)), " int4": ("Quantized", (self.int4(text), self.int4(vision)))}
        if self.device == "cpu" or self.torch.cuda.get_device_capability() >= (8, 9):
            ways[" fp8"] = "Float8", (self.fp8(text), self.fp8(vision))
        for tokens in shape.tokens:
            for both in (False, True):
                for name, (storage, expert_groups) in ways.items():
                    named = f"moe{name}, {'both expert groups' if both else 'text experts'}"
                    yield from self.moe(
                        named, tokens, expert_groups if both else (expert_groups[0], None), storage, blocks
                    )

    def sweep_rows(self, seconds: float) -> Iterator[dict[str, Any]]:
        """Every tactic of GateUp and Down, alone, for the text experts; stops after so many seconds."""
        deadline = time.monotonic() + seconds
        text = self.expert_group(self.shape.widths[0])
        ways = {"": text, "Quantized": self.int4(text)}
        if self.device == "cpu" or self.torch.cuda.get_device_capability() >= (8, 9):
            ways["Float8"] = self.fp8(text)
        for tokens in self.shape.tokens:
            for storage, expert_group in ways.items():
                for row in self.tactics(tokens, storage, expert_group):
                    yield row
                    if time.monotonic() > deadline:
                        yield {"what": "sweep", "end": f"out of its {seconds:.0f} s"}
                        return

    def tactics(self, tokens: int, storage: str, expert_group: ExpertGroup) -> Iterator[dict[str, Any]]:
        """Each tactic of the two stages on inputs that take turns: seconds, or the error."""
        from gpu_timing import seconds

        from ernie_export.graphs.ops.kernel_plugin import launch
        from ernie_export.graphs.ops.moe_dispatch.launch import DECODE, PREFILL, moe_dispatch
        from ernie_export.graphs.ops.moe_dispatch.plugin import kernel_plugins
        from ernie_export.graphs.ops.moe_dispatch.spec import group_inputs

        attributes = {"k": self.shape.k, "norm_min": NORM_MIN, "bits": 4, "group": self.shape.group}
        usual = DECODE if tokens <= 16 else PREFILL
        names = [f"text_{name}" for name in group_inputs(storage)]
        chains = []
        for _ in range(self.shape.sets):
            x = self.normal(tokens, self.shape.hidden)
            chain = moe_dispatch(x, None, expert_group.inputs, None, attributes, self.plain, usual, storage)
            chains.append({"token_types": None} | dict(zip(names, expert_group.inputs, strict=True)) | chain)
        hit = sum(len(chain["experts"].unique()) for chain in chains) / len(chains)
        parts = len(expert_group.inputs[2:]) // 2  # weights, or weights and scales
        for stage, first in (("GateUp", 2), ("Down", 2 + parts)):
            plugin = next(p for p in kernel_plugins(False, storage) if p.name.endswith(stage))
            own = {name: attributes[name] for name in plugin.attributes}
            nbytes = hit * sum(tensor[0].nbytes for tensor in expert_group.inputs[first : first + parts])
            floor = self.ceilings.floor(nbytes, 0)
            for number, tactic in enumerate(plugin.tactics):
                row = {"what": "sweep", "storage": storage or "dense", "tokens": tokens, "stage": stage}
                row |= {"tactic": number, "usual": usual[stage] == number, "bytes": nbytes, "floor": floor}
                try:
                    calls = [partial(launch, plugin, chain, own, tactic, self.plain) for chain in chains]
                    row["seconds"] = seconds(calls, self.device)
                    row["of_floor"] = floor / row["seconds"]
                except Exception as e:
                    row["error"] = f"{type(e).__name__}: {e}"
                yield row

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

    def moe(
        self,
        name: str,
        tokens: int,
        expert_groups: tuple[ExpertGroup, ExpertGroup | None],
        storage: str,
        blocks: list[tuple[str, Any]],
    ) -> Iterator[dict[str, Any]]:
        """One number of tokens: error, time, and PyTorch's times beside weights in the kernels' dtype."""
        from gpu_timing import relative_error, seconds

        from ernie_export.graphs.ops.moe_dispatch.launch import DECODE, PREFILL, moe_dispatch

        torch = self.torch
        shape = self.shape
        (text, vision) = expert_groups
        inputs = [self.normal(tokens, shape.hidden) for _ in range(shape.sets)]
        types = torch.arange(tokens, device=self.device) % 2 if vision else None
        tactics = DECODE if tokens <= 16 else PREFILL
        attributes = {"k": shape.k, "norm_min": NORM_MIN, "bits": 4, "group": shape.group}
        weights = text.inputs, vision.inputs if vision else None

        def call(x: Any, empty: Any) -> dict[str, Any]:
            return moe_dispatch(x, types, *weights, attributes, empty, tactics, storage)

        found = call(inputs[0], self.empty)
        error = relative_error(found["y"], self.reference(inputs[0], found["experts"], expert_groups, types))
        chosen = [found["experts"], *(call(x, self.plain)["experts"] for x in inputs[1:])]
        nbytes = sum(self.moe_bytes(experts, expert_groups) for experts in chosen) / shape.sets + 2 * inputs[0].nbytes
        by_group = [tokens - int((types != 0).sum()), int((types != 0).sum())] if vision else [tokens, 0]
        flops = sum(6 * n * shape.k * shape.hidden * width for n, width in zip(by_group, shape.widths, strict=True))
        agreed = self.choice_agreed(inputs[0], found["experts"], expert_groups, types)
        timed = {"error": error, "choice_agreed": agreed}
        timed["seconds"] = seconds([partial(call, x, self.plain) for x in inputs], self.device)
        of_row = None if types is None else types[None]
        for way, block in [] if storage else blocks:
            try:
                timed[way] = seconds([partial(block, x[None], of_row) for x in inputs], self.device)
            except Exception as e:
                timed[f"{way} error"] = f"{type(e).__name__}: {e}"
        yield self.row(name, tokens, nbytes, flops, **timed)

    def choice_agreed(
        self, x: Any, experts: Any, expert_groups: tuple[ExpertGroup, ExpertGroup | None], types: Any
    ) -> float:
        """Return the fraction of tokens whose experts are those that torch.topk finds of float32 probabilities."""
        same = 0
        for first, expert_group in enumerate(expert_groups):
            if expert_group is not None:
                rows = slice(None) if types is None else types == first
                scores = (x[rows].float() @ expert_group.inputs[0]).softmax(-1) + expert_group.inputs[1]
                expected = scores.topk(self.shape.k).indices.sort(-1).values + first * self.shape.experts
                same += int((experts[rows].sort(-1).values == expected).all(-1).sum())
        return same / len(x)

    def moe_bytes(self, experts: Any, expert_groups: tuple[ExpertGroup, ExpertGroup | None]) -> float:
        """Weights that must be read: routers, and each chosen expert once."""
        total = 0
        for first, expert_group in enumerate(expert_groups):
            if expert_group is not None:
                hit = experts.unique()
                count = int(((hit >= first * self.shape.experts) & (hit < (first + 1) * self.shape.experts)).sum())
                total += expert_group.inputs[0].nbytes + count * expert_group.nbytes
        return total

    def reference(self, x: Any, experts: Any, expert_groups: tuple[ExpertGroup, ExpertGroup | None], types: Any) -> Any:
        """y in float32 for the given choice of experts, whose weights are computed anew."""
        torch = self.torch
        shape = self.shape
        y = torch.zeros(x.shape, device=self.device)
        for first, expert_group in enumerate(expert_groups):
            if expert_group is None:
                continue
            rows = torch.arange(len(x), device=x.device) if types is None else torch.nonzero(types == first)[:, 0]
            probs = (x[rows].float() @ expert_group.inputs[0]).softmax(-1)
            own = experts[rows] - first * shape.experts
            weights = probs.gather(1, own)
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=NORM_MIN)
            for expert in own.unique().tolist():
                place, slot = torch.nonzero(own == expert, as_tuple=True)
                gate_up, down = expert_group.expert(expert)
                both = x[rows[place]].float() @ gate_up.T
                gated = torch.nn.functional.silu(both[:, 0::2]) * both[:, 1::2]
                out = gated @ down.T
                y.index_add_(0, rows[place], out * weights[place, slot, None])
        return y

    def torch_blocks(self, text: ExpertGroup, vision: ExpertGroup) -> Iterator[tuple[str, Any]]:
        """transformers' layer with the same weights, by its ways of running experts."""
        from transformers import Ernie4_5_VLMoeConfig
        from transformers.models.ernie4_5_vl_moe import modeling_ernie4_5_vl_moe as modeling

        shape = self.shape
        config = Ernie4_5_VLMoeConfig().text_config
        config.hidden_size = shape.hidden
        config.moe_num_experts = shape.experts
        config.moe_k = shape.k
        config.moe_intermediate_size = list(shape.widths)
        config.moe_num_shared_experts = 0
        for name in ("grouped_mm", "eager"):
            config._experts_implementation = name
            with self.torch.device(self.device):
                block = modeling.Ernie4_5_VLMoeMoeBlock(config)
            block = block.to(self.dtype).eval()
            for part, expert_group in ((block.text_moe, text), (block.vision_moe, vision)):
                gate, _, gate_up, down = expert_group.inputs
                part.gate.weight.data = gate.T.contiguous()
                # Rows of gate and up in turn here, one after the other there.
                split = self.torch.cat([gate_up[:, 0::2], gate_up[:, 1::2]], dim=1)
                part.experts.gate_up_proj.data = split
                part.experts.down_proj.data = down
            yield name, block


if __name__ == "__main__":
    main()
