"""Multimodal RoPE kernel: q and k in one launch."""

import triton
import triton.language as tl


@triton.jit
def _rotate(x, out, row, inside, head, HEADS: tl.constexpr, D: tl.constexpr, cos, sin,
            BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, PAIRS: tl.constexpr):  # fmt: skip
    """Rotate the pairs (2j, 2j + 1) of BLOCK_N heads from `head` on; cos and sin are (BLOCK_T, PAIRS)."""
    n = head + tl.arange(0, BLOCK_N)
    d = tl.arange(0, 2 * PAIRS)
    place = row[:, None, None] * (HEADS * D) + n[None, :, None] * D + d[None, None, :]
    mask = inside[:, None, None] & (n < HEADS)[None, :, None] & (d < D)[None, None, :]
    pairs = tl.load(x + place, mask=mask, other=0).to(tl.float32)
    even, odd = tl.split(tl.reshape(pairs, (BLOCK_T, BLOCK_N, PAIRS, 2)))
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = tl.join(even * cos - odd * sin, odd * cos + even * sin)
    turned = tl.reshape(turned, (BLOCK_T, BLOCK_N, 2 * PAIRS))
    tl.store(out + place, turned.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T"])
def rope(q, k, position_ids, inv_freq, axes, T, q_rotated, k_rotated, Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
         D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, PAIRS: tl.constexpr):  # fmt: skip
    """Rotate q (T, Q_HEADS·D) and k (T, KV_HEADS·D) by position_ids (3, T) int64, T counting rows times tokens.

    inv_freq (D/2,) float32 and axes (D/2,) int32 are tables: computed here, a frequency off by one bit turns a far
    position by a visible angle. Angles, cos and sin are float32, and q is scaled by 1/sqrt(D) with them. An output may
    be its input: each element is read and written by one program. An axis out of range counts as the nearest: a builder
    may time the kernel on any input. Grid (blocks of tokens, blocks of q heads + blocks of k heads).
    """
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside = token < T
    row = token.to(tl.int64)
    pair = tl.arange(0, PAIRS)
    axis = tl.minimum(tl.maximum(tl.load(axes + pair, mask=pair < D // 2, other=0), 0), 2)
    frequency = tl.load(inv_freq + pair, mask=pair < D // 2, other=0)
    place = axis.to(tl.int64)[None, :] * T + row[:, None]
    position = tl.load(position_ids + place, mask=inside[:, None] & (pair < D // 2)[None, :], other=0)
    angle = position.to(tl.float32) * frequency[None, :]
    cos, sin = tl.cos(angle), tl.sin(angle)
    block = tl.program_id(1)
    Q_BLOCKS: tl.constexpr = (Q_HEADS + BLOCK_N - 1) // BLOCK_N
    if block < Q_BLOCKS:
        SCALE: tl.constexpr = 1 / D**0.5
        cos *= SCALE
        sin *= SCALE
        _rotate(q, q_rotated, row, inside, block * BLOCK_N, Q_HEADS, D, cos, sin, BLOCK_T, BLOCK_N, PAIRS)
    else:
        _rotate(k, k_rotated, row, inside, (block - Q_BLOCKS) * BLOCK_N, KV_HEADS, D, cos, sin, BLOCK_T, BLOCK_N, PAIRS)
