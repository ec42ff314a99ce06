"""Expert kernels: grouped matrix products over the slots of each expert, and the sum over a token's slots.

Text and vision experts share one launch. A tile is up to BLOCK_M slots of one expert by a block of its weight rows, and
a grid is the most tiles that any routing can need. With BLOCK_M at least the number of tokens every chosen expert has
one row of tiles: its weights are read exactly once (decode). A program finds its tile in `offsets` and `order`, or,
where few slots make a launch for sorting expensive, in `slots` itself: `offsets` is None then, and up to FEW slots are
left to kernel_few.py. How weights are stored, and SWAP and UPCAST: see quantized_linear/kernel_product.py; scales are
None where weights have the graph's dtype.
"""

import triton
import triton.language as tl

from ernie_export.graphs.ops.quantized_linear.kernel_product import product


@triton.jit
def _number(index, tiles):
    """Expert of tile number `index`, given the tiles of each expert, and the tile's number among that expert's."""
    last = tl.cumsum(tiles)
    before = last <= index
    return tl.sum(before.to(tl.int32)), index - tl.max(tl.where(before, last, 0))


@triton.jit
def _tile(index, slots, offsets, order, count, FEW: tl.constexpr, EXPERTS: tl.constexpr, BLOCK_X: tl.constexpr,
          BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr):  # fmt: skip
    """Expert of tile number `index` (EXPERTS or more: there is no such tile) and its slots, -1 where it has fewer.

    Slots are within the tensors whatever `offsets` and `order` hold: TensorRT times kernels on inputs of its own.
    """
    e = tl.arange(0, BLOCK_X)
    m = tl.arange(0, BLOCK_M)
    if offsets is not None:
        start = tl.load(offsets + e, mask=e < EXPERTS, other=0)
        end = tl.load(offsets + e + 1, mask=e < EXPERTS, other=0)
        expert, number = _number(index, (end - start + BLOCK_M - 1) // BLOCK_M)
        known = tl.minimum(expert, EXPERTS - 1)
        place = tl.load(offsets + known) + number * BLOCK_M + m
        end = tl.minimum(tl.load(offsets + known + 1), count)
        slot = tl.load(order + place, mask=(place >= 0) & (place < end), other=-1)
        slot = tl.where(slot < count, slot, -1)
    elif count <= FEW:
        expert = index * 0 + EXPERTS
        slot = m * 0 - 1
    else:
        lane = tl.arange(0, BLOCK_S)
        counts = tl.zeros((BLOCK_X,), tl.int32)
        begin = 0
        while begin < count:
            chosen = tl.load(slots + begin + lane, mask=begin + lane < count, other=-1)
            counts += tl.sum((chosen[:, None] == e[None, :]).to(tl.int32), 0)
            begin += BLOCK_S
        expert, number = _number(index, (counts + BLOCK_M - 1) // BLOCK_M)
        slot = tl.zeros((BLOCK_M,), tl.int32) - 1
        passed = -number * BLOCK_M
        begin = 0
        while begin < count:
            chosen = tl.load(slots + begin + lane, mask=begin + lane < count, other=-1)
            mine = (chosen == expert).to(tl.int32)
            place = tl.where(mine == 1, passed + tl.cumsum(mine) - 1, -1)
            slot += tl.sum(tl.where(place[:, None] == m[None, :], (begin + lane + 1)[:, None], 0), 0)
            passed += tl.sum(mine)
            begin += BLOCK_S
    return expert, slot


@triton.jit
def _gate_up_tile(x, w, scales, expert, slot, weights, act, block, WIDTH: tl.constexpr, H: tl.constexpr,
                  K: tl.constexpr, STRIDE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
                  FLOAT8: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                  SWAP: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    if block * BLOCK_N < WIDTH:
        inside = slot >= 0
        token = (slot // K).to(tl.int64)
        both = product(x, token, inside, H, w, scales, expert, block * 2 * BLOCK_N, 2 * WIDTH, H, BITS, GROUP, FLOAT8,
                       BLOCK_M, 2 * BLOCK_N, BLOCK_K, SWAP, UPCAST)  # fmt: skip
        gate, up = tl.split(tl.reshape(both, (BLOCK_M, BLOCK_N, 2)))
        weight = tl.load(weights + slot, mask=inside, other=0)
        value = gate / (1 + tl.exp(-gate)) * up * weight[:, None]
        i = block * BLOCK_N + tl.arange(0, BLOCK_N)
        place = slot.to(tl.int64)[:, None] * STRIDE + i[None, :]
        tl.store(act + place, value.to(act.dtype.element_ty), mask=inside[:, None] & (i < WIDTH)[None, :])


@triton.jit(do_not_specialize=["T"])
def gate_up(x, slots, offsets, order, weights, text_gate_up, text_gate_up_scales, vision_gate_up,
            vision_gate_up_scales, T, act, H: tl.constexpr, I_TEXT: tl.constexpr, I_VISION: tl.constexpr,
            K: tl.constexpr, E: tl.constexpr, EXPERTS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
            FLOAT8: tl.constexpr, FEW: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_S: tl.constexpr,
            BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr,
            UPCAST: tl.constexpr):  # fmt: skip
    """act (T·K, max(I)), by slot: weight · silu(gate) · up, rounded once; weight rows of gate and up in turn.

    The routing weight goes in here, in float32, because the down projection is linear. Grid (tiles · blocks of I,).
    """
    WIDEST: tl.constexpr = I_TEXT if I_TEXT > I_VISION else I_VISION
    BLOCKS: tl.constexpr = (WIDEST + BLOCK_N - 1) // BLOCK_N
    block = tl.program_id(0) % BLOCKS
    expert, slot = _tile(tl.program_id(0) // BLOCKS, slots, offsets, order, T * K, FEW, EXPERTS, BLOCK_X, BLOCK_M,
                         BLOCK_S)  # fmt: skip
    if expert < E:
        _gate_up_tile(x, text_gate_up, text_gate_up_scales, expert, slot, weights, act, block, I_TEXT, H, K, WIDEST,
                      BITS, GROUP, FLOAT8, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, UPCAST)  # fmt: skip
    if vision_gate_up is not None:
        if (expert >= E) & (expert < EXPERTS):
            _gate_up_tile(x, vision_gate_up, vision_gate_up_scales, expert - E, slot, weights, act, block, I_VISION, H,
                          K, WIDEST, BITS, GROUP, FLOAT8, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, UPCAST)  # fmt: skip


@triton.jit
def _down_tile(act, w, scales, expert, slot, out, block, WIDTH: tl.constexpr, H: tl.constexpr, STRIDE: tl.constexpr,
               BITS: tl.constexpr, GROUP: tl.constexpr, FLOAT8: tl.constexpr, BLOCK_M: tl.constexpr,
               BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    inside = slot >= 0
    row = slot.to(tl.int64)
    acc = product(act, row, inside, STRIDE, w, scales, expert, block * BLOCK_N, H, WIDTH, BITS, GROUP, FLOAT8,
                  BLOCK_M, BLOCK_N, BLOCK_K, SWAP, UPCAST)  # fmt: skip
    h = block * BLOCK_N + tl.arange(0, BLOCK_N)
    tl.store(out + row[:, None] * H + h[None, :], acc.to(out.dtype.element_ty), mask=inside[:, None] & (h < H)[None, :])


@triton.jit(do_not_specialize=["T"])
def down(act, slots, offsets, order, text_down, text_down_scales, vision_down, vision_down_scales, T, out,
         H: tl.constexpr, I_TEXT: tl.constexpr, I_VISION: tl.constexpr, K: tl.constexpr, E: tl.constexpr,
         EXPERTS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, FLOAT8: tl.constexpr, FEW: tl.constexpr,
         BLOCK_X: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
         BLOCK_K: tl.constexpr, SWAP: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """out (T·K, H), by slot: the down projection of act. Grid (tiles · blocks of H,)."""
    WIDEST: tl.constexpr = I_TEXT if I_TEXT > I_VISION else I_VISION
    BLOCKS: tl.constexpr = (H + BLOCK_N - 1) // BLOCK_N
    block = tl.program_id(0) % BLOCKS
    expert, slot = _tile(tl.program_id(0) // BLOCKS, slots, offsets, order, T * K, FEW, EXPERTS, BLOCK_X, BLOCK_M,
                         BLOCK_S)  # fmt: skip
    if expert < E:
        _down_tile(act, text_down, text_down_scales, expert, slot, out, block, I_TEXT, H, WIDEST,
                   BITS, GROUP, FLOAT8, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, UPCAST)  # fmt: skip
    if vision_down is not None:
        if (expert >= E) & (expert < EXPERTS):
            _down_tile(act, vision_down, vision_down_scales, expert - E, slot, out, block, I_VISION, H, WIDEST,
                       BITS, GROUP, FLOAT8, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, UPCAST)  # fmt: skip


@triton.jit
def combine(out, y, K: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr):
    """y (T, H): each token's K slots added in float32, in ascending order of expert. Grid (T, blocks of H)."""
    token = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    acc = tl.zeros((BLOCK_H,), tl.float32)
    for slot in tl.static_range(K):
        acc += tl.load(out + (token * K + slot) * H + h, mask=h < H, other=0).to(tl.float32)
    tl.store(y + token * H + h, acc.to(y.dtype.element_ty), mask=h < H)
