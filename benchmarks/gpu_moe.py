"""Time expert dispatch beside transformers' layer, for gpu_kernels.py."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from gpu_bench import NORM_MIN, STEP
from gpu_experts import ExpertBench, ExpertGroup


class MoeBench(ExpertBench):
    """Expert dispatch."""

    def moe_rows(self) -> Iterator[dict[str, Any]]:
        """Expert dispatch of text tokens alone, and of as many text as vision tokens.

        A step of text tokens runs ExpertGroup; a prompt of them runs MoEDispatch, whose vision experts have none.
        """
        shape = self.shape
        text, vision = (self.expert_group(width) for width in shape.widths)
        try:
            blocks = list(self.torch_blocks(text, vision))
        except Exception as e:  # the kernels are timed without their peers, too
            blocks = []
            yield {"what": "transformers' experts", "error": f"{type(e).__name__}: {e}"}
        ways = {"": ("", (text, vision)), " int4": ("Quantized", (self.int4(text), self.int4(vision)))}
        if self.device == "cpu" or self.torch.cuda.get_device_capability() >= (8, 9):
            ways[" fp8"] = "Float8", (self.fp8(text), self.fp8(vision))
        for tokens in shape.tokens:
            for both in (False, True):
                for name, (storage, expert_groups) in ways.items():
                    named = f"moe{name}, {'both expert groups' if both else 'text experts'}"
                    present = expert_groups if both or tokens > STEP else (expert_groups[0], None)
                    types = self.torch.arange(tokens, device=self.device) % 2 * both if present[1] else None
                    yield from self.moe(named, types, tokens, present, storage, blocks)

    def moe(
        self,
        name: str,
        types: Any | None,
        tokens: int,
        expert_groups: tuple[ExpertGroup, ExpertGroup | None],
        storage: str,
        blocks: list[tuple[str, Any]],
    ) -> Iterator[dict[str, Any]]:
        """One number of tokens: error, time, and PyTorch's times beside weights in the kernels' dtype."""
        from gpu_timing import relative_error, seconds

        from ernie_export.graphs.ops.moe_dispatch.launch import DECODE, PREFILL, PREFILL_QUANTIZED, moe_dispatch
        from ernie_export.graphs.ops.moe_dispatch.plugin_few import FEW

        shape = self.shape
        (text, vision) = expert_groups
        inputs = [self.normal(tokens, shape.hidden) for _ in range(shape.sets)]
        tactics = DECODE if tokens <= STEP else PREFILL_QUANTIZED if storage else PREFILL
        attributes = {"k": shape.k, "norm_min": NORM_MIN, "bits": 4, "group": shape.group}
        weights = text.inputs, vision.inputs if vision else None

        def call(x: Any, empty: Any, few: bool = vision is None and tokens <= FEW) -> dict[str, Any]:
            """As engines of so many sequences run them, if these are few; else as engines of more."""
            return moe_dispatch(x, types, *weights, attributes, empty, tactics, storage, few)

        found = call(inputs[0], self.empty)
        error = relative_error(found["y"], self.reference(inputs[0], found["experts"], expert_groups, types))
        chosen = [found["experts"], *(call(x, self.plain)["experts"] for x in inputs[1:])]
        nbytes = sum(self.moe_bytes(experts, expert_groups) for experts in chosen) / shape.sets + 2 * inputs[0].nbytes
        by_group = [tokens - int((types != 0).sum()), int((types != 0).sum())] if vision else [tokens, 0]
        flops = sum(6 * n * shape.k * shape.hidden * width for n, width in zip(by_group, shape.widths, strict=True))
        agreed = self.choice_agreed(inputs[0], found["experts"], expert_groups, types)
        timed = {"error": error, "choice_agreed": agreed}
        timed["seconds"] = seconds([partial(call, x, self.plain) for x in inputs], self.device)
        if vision is None and tokens <= FEW:
            calls = [partial(call, x, self.plain, few=False) for x in inputs]
            timed["in engines of more sequences"] = seconds(calls, self.device)
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
        """Weights that must be read: routers of groups that have tokens, and each chosen expert once."""
        total = 0
        for first, expert_group in enumerate(expert_groups):
            if expert_group is not None:
                hit = experts.unique()
                count = int(((hit >= first * self.shape.experts) & (hit < (first + 1) * self.shape.experts)).sum())
                total += (expert_group.inputs[0].nbytes if count else 0) + count * expert_group.nbytes
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
