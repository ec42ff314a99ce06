"""Expert kernels: grouped matrix products over the slots of each expert, and the sum over a token's slots.

Both banks share one launch. A tile is up to BLOCK_M slots of one expert by a block of its weight rows; tiles are
found from `offsets` alone, and a grid is the most tiles that any routing can need. With BLOCK_M at least the number
of tokens every chosen expert has one row of tiles: its weights are read exactly once (decode). SWAP puts the weight
rows where matrix units are widest, for the few tokens of decode. UPCAST: multiply in float32 (for the interpreter,
whose bfloat16 product is wrong).
"""

import triton
import triton.language as tl


@triton.jit
def _tile(index, offsets, EXPERTS: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_M: tl.constexpr):
    """Expert of tile number `index` (EXPERTS or more: there is no such tile), and its range of sorted slots."""
    e = tl.arange(0, BLOCK_X)
    start = tl.load(offsets + e, mask=e < EXPERTS, other=0)
    end = tl.load(offsets + e + 1, mask=e < EXPERTS, other=0)
    last = tl.cumsum((end - start + BLOCK_M - 1) // BLOCK_M)
    expert = tl.sum((last <= index).to(tl.int32))
    skipped = tl.max(tl.where(last <= index, last, 0))
    known = tl.minimum(expert, EXPERTS - 1)
    return expert, tl.load(offsets + known) + (index - skipped) * BLOCK_M, tl.load(offsets + known + 1)


@triton.jit
def _product(a, rows, inside, A_STRIDE: tl.constexpr, w, first, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
             BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr,
             UPCAST: tl.constexpr):  # fmt: skip
    """a[rows, :DEPTH] · w[first:first + BLOCK_N, :DEPTH]ᵀ in float32: (BLOCK_M, BLOCK_N). w is (WIDTH, DEPTH)."""
    n = first + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, DEPTH, BLOCK_K):
        deep = start + k < DEPTH
        left = tl.load(a + rows[:, None] * A_STRIDE + (start + k)[None, :], inside[:, None] & deep[None, :], other=0)
        right = tl.load(w + n[:, None] * DEPTH + (start + k)[None, :], (n < WIDTH)[:, None] & deep[None, :], other=0)
        if UPCAST:
            left, right = left.to(tl.float32), right.to(tl.float32)
        if SWAP:
            acc = tl.dot(right, tl.trans(left), acc, input_precision="ieee")
        else:
            acc = tl.dot(left, tl.trans(right), acc, input_precision="ieee")
    if SWAP:
        acc = tl.trans(acc)
    return acc


@triton.jit
def _gate_up_tile(x, w, order, weights, act, row, end, block, WIDTH: tl.constexpr, H: tl.constexpr, K: tl.constexpr,
                  STRIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                  SWAP: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    if block * BLOCK_N < WIDTH:
        m = row + tl.arange(0, BLOCK_M)
        slot = tl.load(order + m, mask=m < end, other=0)
        token = (slot // K).to(tl.int64)
        both = _product(x, token, m < end, H, w, block * 2 * BLOCK_N, 2 * WIDTH, H,
                        BLOCK_M, 2 * BLOCK_N, BLOCK_K, SWAP, UPCAST)  # fmt: skip
        gate, up = tl.split(tl.reshape(both, (BLOCK_M, BLOCK_N, 2)))
        weight = tl.load(weights + slot, mask=m < end, other=0)
        value = gate / (1 + tl.exp(-gate)) * up * weight[:, None]
        i = block * BLOCK_N + tl.arange(0, BLOCK_N)
        place = m.to(tl.int64)[:, None] * STRIDE + i[None, :]
        tl.store(act + place, value.to(act.dtype.element_ty), mask=(m < end)[:, None] & (i < WIDTH)[None, :])


@triton.jit
def gate_up(x, offsets, order, weights, text_gate_up, vision_gate_up, act, H: tl.constexpr, I_TEXT: tl.constexpr,
            I_VISION: tl.constexpr, K: tl.constexpr, E: tl.constexpr, EXPERTS: tl.constexpr, BLOCK_X: tl.constexpr,
            BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr,
            UPCAST: tl.constexpr):  # fmt: skip
    """act (T·K, max(I)): weight · silu(gate) · up of each sorted slot, rounded once; rows of gate and up in turn.

    The routing weight goes in here, in float32, because the down projection is linear. Grid (tiles · blocks of I,).
    """
    WIDEST: tl.constexpr = I_TEXT if I_TEXT > I_VISION else I_VISION
    BLOCKS: tl.constexpr = (WIDEST + BLOCK_N - 1) // BLOCK_N
    block = tl.program_id(0) % BLOCKS
    expert, row, end = _tile(tl.program_id(0) // BLOCKS, offsets, EXPERTS, BLOCK_X, BLOCK_M)
    if expert < E:
        w = text_gate_up + expert.to(tl.int64) * (2 * I_TEXT * H)
        _gate_up_tile(x, w, order, weights, act, row, end, block, I_TEXT, H, K, WIDEST,
                      BLOCK_M, BLOCK_N, BLOCK_K, SWAP, UPCAST)  # fmt: skip
    if vision_gate_up is not None:
        if (expert >= E) & (expert < EXPERTS):
            w = vision_gate_up + (expert - E).to(tl.int64) * (2 * I_VISION * H)
            _gate_up_tile(x, w, order, weights, act, row, end, block, I_VISION, H, K, WIDEST,
                          BLOCK_M, BLOCK_N, BLOCK_K, SWAP, UPCAST)  # fmt: skip


@triton.jit
def _down_tile(act, w, order, out, row, end, block, WIDTH: tl.constexpr, H: tl.constexpr, STRIDE: tl.constexpr,
               BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr,
               UPCAST: tl.constexpr):  # fmt: skip
    m = row + tl.arange(0, BLOCK_M)
    acc = _product(act, m.to(tl.int64), m < end, STRIDE, w, block * BLOCK_N, H, WIDTH,
                   BLOCK_M, BLOCK_N, BLOCK_K, SWAP, UPCAST)  # fmt: skip
    slot = tl.load(order + m, mask=m < end, other=0).to(tl.int64)
    h = block * BLOCK_N + tl.arange(0, BLOCK_N)
    place = slot[:, None] * H + h[None, :]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=(m < end)[:, None] & (h < H)[None, :])


@triton.jit
def down(act, offsets, order, text_down, vision_down, out, H: tl.constexpr, I_TEXT: tl.constexpr,
         I_VISION: tl.constexpr, E: tl.constexpr, EXPERTS: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_M: tl.constexpr,
         BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """out (T·K, H), by slot: the down projection of each sorted slot. Grid (tiles · blocks of H,)."""
    WIDEST: tl.constexpr = I_TEXT if I_TEXT > I_VISION else I_VISION
    BLOCKS: tl.constexpr = (H + BLOCK_N - 1) // BLOCK_N
    block = tl.program_id(0) % BLOCKS
    expert, row, end = _tile(tl.program_id(0) // BLOCKS, offsets, EXPERTS, BLOCK_X, BLOCK_M)
    if expert < E:
        w = text_down + expert.to(tl.int64) * (H * I_TEXT)
        _down_tile(act, w, order, out, row, end, block, I_TEXT, H, WIDEST,
                   BLOCK_M, BLOCK_N, BLOCK_K, SWAP, UPCAST)  # fmt: skip
    if vision_down is not None:
        if (expert >= E) & (expert < EXPERTS):
            w = vision_down + (expert - E).to(tl.int64) * (H * I_VISION)
            _down_tile(act, w, order, out, row, end, block, I_VISION, H, WIDEST,
                       BLOCK_M, BLOCK_N, BLOCK_K, SWAP, UPCAST)  # fmt: skip


@triton.jit
def combine(out, y, K: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr):
    """y (T, H): each token's K slots added in float32, in ascending order of expert. Grid (T, blocks of H)."""
    token = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    acc = tl.zeros((BLOCK_H,), tl.float32)
    for slot in tl.static_range(K):
        acc += tl.load(out + (token * K + slot) * H + h, mask=h < H, other=0).to(tl.float32)
    tl.store(y + token * H + h, acc.to(y.dtype.element_ty), mask=h < H)
