"""Time the kernel of multimodal RoPE, for gpu_kernels.py."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from gpu_bench import Bench


class RopeBench(Bench):
    """The rotation of q and k."""

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
