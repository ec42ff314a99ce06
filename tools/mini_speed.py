"""A quicker form of the class's vision attention, for training on a CPU.

The reference attends frame by frame in a Python loop; here frames of equal size are attended in one batch. Evaluation
and everything that users run load the class as it is.
"""

import torch
import torchvision_operators  # noqa: F401
from torch import nn
from torch.nn import functional as F
from transformers.models.ernie4_5_vl_moe import modeling_ernie4_5_vl_moe as reference


def attend(self: nn.Module, hidden_states: torch.Tensor, cu_seqlens: torch.Tensor, **kwargs) -> torch.Tensor:
    total = hidden_states.shape[0]
    qkv = self.qkv(hidden_states).reshape(total, 3, self.num_heads, -1)
    q, k = reference.apply_rotary_pos_emb_vision(qkv[:, 0], qkv[:, 1], *kwargs["position_embeddings"])
    v = qkv[:, 2]
    lengths = cu_seqlens.diff()
    out = torch.empty_like(v) if len(lengths.unique()) > 1 else None
    for length in lengths.unique().tolist():
        rows = None
        if out is not None:
            starts = cu_seqlens[:-1][lengths == length]
            rows = (starts[:, None] + torch.arange(length)).flatten()
        q_, k_, v_ = (
            (x if rows is None else x[rows]).reshape(-1, length, self.num_heads, self.head_dim).transpose(1, 2)
            for x in (q, k, v)
        )
        mixed = F.scaled_dot_product_attention(q_, k_, v_, scale=self.scaling).transpose(1, 2)
        if rows is None:
            return self.proj(mixed.reshape(total, -1))
        out = out.index_copy(0, rows, mixed.reshape(-1, self.num_heads, self.head_dim))
    return self.proj(out.reshape(total, -1))


def install() -> None:
    """Replace the forward method for the rest of this process."""
    reference.Ernie4_5_VLMoeVisionAttention.forward = attend
