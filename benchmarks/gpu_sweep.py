"""Time every tactic of the stages that read the experts' weights, for gpu_kernels.py."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from gpu_bench import NORM_MIN
from gpu_experts import ExpertBench, ExpertGroup


class SweepBench(ExpertBench):
    """The tactics, one by one; few tokens have kernels of their own, with one each."""

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
        from ernie_export.graphs.ops.moe_dispatch.launch import (
            DECODE,
            PREFILL,
            PREFILL_QUANTIZED,
            moe_dispatch,
            tactic_of,
        )
        from ernie_export.graphs.ops.moe_dispatch.plugin import kernel_plugins
        from ernie_export.graphs.ops.moe_dispatch.plugin_few import FEW
        from ernie_export.graphs.ops.moe_dispatch.spec import group_inputs

        attributes = {"k": self.shape.k, "norm_min": NORM_MIN, "bits": 4, "group": self.shape.group}
        usual = DECODE if tokens <= 16 else PREFILL_QUANTIZED if storage else PREFILL
        few = tokens <= FEW
        names = [f"text_{name}" for name in group_inputs(storage)]
        chains = []
        for _ in range(self.shape.sets):
            x = self.normal(tokens, self.shape.hidden)
            chain = moe_dispatch(x, None, expert_group.inputs, None, attributes, self.plain, usual, storage, few)
            chains.append({"token_types": None} | dict(zip(names, expert_group.inputs, strict=True)) | chain)
        hit = sum(len(chain["experts"].unique()) for chain in chains) / len(chains)
        parts = len(expert_group.inputs[2:]) // 2  # weights, or weights and scales
        for stage, first in (("GateUp", 2), ("Down", 2 + parts)):
            plugin = next(p for p in kernel_plugins(False, storage, few) if p.name.endswith(stage))
            own = {name: attributes[name] for name in plugin.attributes}
            nbytes = hit * sum(tensor[0].nbytes for tensor in expert_group.inputs[first : first + parts])
            floor = self.ceilings.floor(nbytes, 0)
            for number, tactic in enumerate(plugin.tactics):
                row = {"what": "sweep", "storage": storage or "dense", "tokens": tokens, "stage": stage}
                row |= {"tactic": number, "usual": tactic_of(plugin, usual) == number, "bytes": nbytes, "floor": floor}
                try:
                    calls = [partial(launch, plugin, chain, own, tactic, self.plain) for chain in chains]
                    row["seconds"] = seconds(calls, self.device)
                    row["of_floor"] = floor / row["seconds"]
                except Exception as e:
                    row["error"] = f"{type(e).__name__}: {e}"
                yield row
