"""Time every tactic of the stages that read the experts' weights, for gpu_kernels.py."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from gpu_bench import NORM_MIN, STEP
from gpu_experts import ExpertBench, ExpertGroup


class SweepBench(ExpertBench):
    """The tactics, one by one; few tokens have kernels of their own, with one each.

    Most tokens come first: each tactic is compiled anew, and it is prompts whose tactic arithmetic leaves open.
    """

    def sweep_rows(self, seconds: float) -> Iterator[dict[str, Any]]:
        """Every tactic of GateUp and Down, alone, for text tokens; stops after so many seconds."""
        deadline = time.monotonic() + seconds
        groups = [self.expert_group(width) for width in self.shape.widths]
        ways = {"": groups, "Quantized": [self.int4(group) for group in groups]}
        if self.device == "cpu" or self.torch.cuda.get_device_capability() >= (8, 9):
            ways["Float8"] = [self.fp8(group) for group in groups]
        for tokens in sorted(self.shape.tokens, reverse=True):
            for storage, (text, vision) in ways.items():
                for row in self.tactics(tokens, storage, text, vision if tokens > STEP else None):
                    yield row
                    if time.monotonic() > deadline:
                        yield {"what": "sweep", "end": f"out of its {seconds:.0f} s"}
                        return

    def tactics(
        self, tokens: int, storage: str, text: ExpertGroup, vision: ExpertGroup | None
    ) -> Iterator[dict[str, Any]]:
        """Each tactic of the two stages on inputs that take turns: seconds, or the error.

        With `vision` the stages are those of MoEDispatch, which prompts run; all tokens are text all the same.
        """
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

        attributes = {"k": self.shape.k, "norm_min": NORM_MIN, "bits": 4, "group": self.shape.group}
        usual = DECODE if tokens <= STEP else PREFILL_QUANTIZED if storage else PREFILL
        few = tokens <= FEW
        types = self.torch.zeros(tokens, dtype=self.torch.int64, device=self.device) if vision else None
        weights = text.inputs, vision.inputs if vision else None
        chains = []
        for _ in range(self.shape.sets):
            x = self.normal(tokens, self.shape.hidden)
            chains.append(moe_dispatch(x, types, *weights, attributes, self.plain, usual, storage, few))
        hit = sum(len(chain["experts"].unique()) for chain in chains) / len(chains)
        parts = len(text.inputs[2:]) // 2  # weights, or weights and scales
        for stage, first in (("GateUp", 2), ("Down", 2 + parts)):
            plugin = next(p for p in kernel_plugins(vision is not None, storage, few) if p.name.endswith(stage))
            own = {name: attributes[name] for name in plugin.attributes}
            nbytes = hit * sum(tensor[0].nbytes for tensor in text.inputs[first : first + parts])
            floor = self.ceilings.floor(nbytes, 0)
            for number, tactic in enumerate(plugin.tactics):
                row = {"what": "sweep", "storage": storage or "dense", "tokens": tokens, "stage": stage}
                row["plugin"] = plugin.name
                row |= {"tactic": number, "usual": tactic_of(plugin, usual) == number, "bytes": nbytes, "floor": floor}
                try:
                    calls = [partial(launch, plugin, chain, own, tactic, self.plain) for chain in chains]
                    row["seconds"] = seconds(calls, self.device)
                    row["of_floor"] = floor / row["seconds"]
                except Exception as e:
                    row["error"] = f"{type(e).__name__}: {e}"
                yield row
