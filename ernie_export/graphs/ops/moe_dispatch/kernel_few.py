"""Expert kernels for a token or two: routing, both products and the sum over a token's experts in two launches.

Each of the two is for such steps alone, or for steps of any number of tokens: then it does for more than FEW tokens
what other kernels need done before and after theirs, routing and the sum.

A program multiplies some rows of one expert by one vector: it reads them once, 16 bytes a thread at a time, straight to
registers, and adds in float32. So few multiplications leave matrix units without use, and shared memory with them. The
routing weight goes into `act`, since the down projection is linear. How weights are stored: see
quantized_linear/kernel_product.py; scales are None where weights have the graph's dtype.
"""

import triton
import triton.language as tl

from ernie_export.graphs.ops.moe_dispatch.kernel_experts import combine
from ernie_export.graphs.ops.moe_dispatch.kernel_route import route


@triton.jit
def _routing(partial, bias, token, T, place, E: tl.constexpr, K: tl.constexpr, SPLITS: tl.constexpr,
             NORM_MIN: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr):  # fmt: skip
    """The token's expert number `place`, best first, and its weight: as `kernel_route.route` chooses and weighs.

    Every expert's rank is counted at once: scores are ordered by value, then by number, so that no two have one rank
    and the expert is within the tensors whatever they hold, NaN too.
    """
    expert = tl.arange(0, BLOCK_E)
    split = tl.arange(0, BLOCK_P)
    at = (split[:, None].to(tl.int64) * T + token) * E + expert[None, :]
    logit = tl.sum(tl.load(partial + at, mask=(split < SPLITS)[:, None] & (expert < E)[None, :], other=0), 0)
    logit = tl.where(expert < E, logit, float("-inf"))
    shifted = tl.exp(logit - tl.max(logit, 0))
    probs = shifted / tl.sum(shifted, 0)
    score = probs + tl.load(bias + expert, mask=expert < E, other=0)
    score = tl.where(expert < E, tl.where(score > -3.0e38, score, -3.0e38), float("-inf"))  # NaN is not greater
    ahead = (score[None, :] > score[:, None]) | (score[None, :] == score[:, None]) & (expert[None, :] < expert[:, None])
    rank = tl.sum(ahead.to(tl.int32), 1)
    total = tl.sum(tl.where(rank < K, probs, 0.0), 0)
    weight = tl.sum(tl.where(rank == place, probs, 0.0), 0) / tl.maximum(total, NORM_MIN)
    return tl.sum(tl.where(rank == place, expert, 0), 0), weight


@triton.jit
def _value(word, PLACE: tl.constexpr, BITS: tl.constexpr):
    """The value number PLACE of a word, less half its range, times 2^(BITS·PLACE): where it stands needs no shift.

    The lowest 23 bits of 2^23 as a float32 count in ones: two operations in place of a conversion.
    """
    SHIFT: tl.constexpr = BITS * PLACE
    MASK: tl.constexpr = (2**BITS - 1) << SHIFT
    MIDDLE: tl.constexpr = 2.0**23 + 2.0 ** (BITS - 1 + SHIFT)
    return ((word & MASK) | 0x4B000000).to(tl.float32, bitcast=True) - MIDDLE


@triton.jit
def _values(word, ROWS: tl.constexpr, STEP: tl.constexpr, BITS: tl.constexpr):
    """The values of words: (ROWS, STEP), each half word's as `_value` gives them, so times what `_unit` divides by."""
    high = word >> 16
    if BITS == 4:
        even = tl.join(tl.join(_value(word, 0, 4), _value(high, 0, 4)), tl.join(_value(word, 2, 4), _value(high, 2, 4)))
        odd = tl.join(tl.join(_value(word, 1, 4), _value(high, 1, 4)), tl.join(_value(word, 3, 4), _value(high, 3, 4)))
    else:
        even = tl.join(_value(word, 0, 8), _value(high, 0, 8))
        odd = tl.join(_value(word, 1, 8), _value(high, 1, 8))
    return tl.reshape(tl.join(even, odd), (ROWS, STEP))


@triton.jit
def _unit(k, BITS: tl.constexpr):
    """1 / 2^(BITS·place) of value k's place in its half word, a power of two by its exponent alone: exact."""
    return ((127 - BITS * (k % (16 // BITS))) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _stored(w, expert, row, start: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr, BITS: tl.constexpr,
            QUANTIZED: tl.constexpr, FLOAT8: tl.constexpr, STEP: tl.constexpr):  # fmt: skip
    """w[expert, row, start:start + STEP] as it is stored: numbers, bytes of e4m3 numbers, or words of integers."""
    if FLOAT8:
        w = w.to(tl.pointer_type(tl.uint8), bitcast=True)
    EACH: tl.constexpr = 32 // BITS if QUANTIZED and not FLOAT8 else 1  # values that are loaded as one
    LINE: tl.constexpr = DEPTH // EACH
    column = start // EACH + tl.arange(0, STEP // EACH)
    place = row[:, None] * LINE + column[None, :]
    inside = (row < WIDTH)[:, None] & (column < LINE)[None, :]
    return tl.load(w + expert.to(tl.int64) * (WIDTH * LINE) + place, mask=inside, other=0)


@triton.jit
def _scales(scales, expert, row, start: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
            STEP: tl.constexpr, RUN: tl.constexpr):  # fmt: skip
    """The scale of each RUN of the values that `_stored` returns: (rows, STEP / RUN)."""
    group = (start + tl.arange(0, STEP // RUN) * RUN) // GROUP
    place = row[:, None] * (DEPTH // GROUP) + group[None, :]
    inside = (row < WIDTH)[:, None] & (group < DEPTH // GROUP)[None, :]
    return tl.load(scales + expert.to(tl.int64) * (WIDTH * DEPTH // GROUP) + place, mask=inside, other=0)


@triton.jit
def _add_products(acc, a, w, scales, experts, first, WIDTH: tl.constexpr, DEPTH: tl.constexpr, BITS: tl.constexpr,
                  GROUP: tl.constexpr, FLOAT8: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
                  RUN: tl.constexpr, AHEAD: tl.constexpr):  # fmt: skip
    """acc (ROWS, STEP / RUN) + products of w[expert, first:first + ROWS, :DEPTH] and a row of a, RUN each added.

    a (experts, DEPTH), a row for each of the experts. RUN values lie in one thread's 16 bytes, and within a group. The
    weights of AHEAD steps and their scales are asked for before the first of them is multiplied.
    """
    row = first + tl.arange(0, ROWS)
    k = tl.arange(0, STEP)
    STEPS: tl.constexpr = (DEPTH + STEP - 1) // STEP
    COUNT: tl.constexpr = len(experts) * STEPS
    for begin in tl.static_range(0, COUNT, AHEAD):
        stored = ()
        scaled = ()
        for step in tl.static_range(begin, min(begin + AHEAD, COUNT)):
            expert = experts[step // STEPS]
            start = step % STEPS * STEP
            stored += (_stored(w, expert, row, start, WIDTH, DEPTH, BITS, scales is not None, FLOAT8, STEP),)
            if scales is not None:
                scaled += (_scales(scales, expert, row, start, WIDTH, DEPTH, GROUP, STEP, RUN),)
        for step in tl.static_range(begin, min(begin + AHEAD, COUNT)):
            number = stored[step - begin]
            start = step % STEPS * STEP
            there = a + step // STEPS * DEPTH + start + k
            if scales is None or FLOAT8:
                there = tl.broadcast_to(there[None, :], (ROWS, STEP))  # 16 bytes a thread, as of the weights
                x = tl.load(there, mask=(start + k < DEPTH)[None, :], other=0).to(tl.float32)
                if FLOAT8:
                    number = number.to(tl.float8e4nv, bitcast=True)
                product = number.to(tl.float32) * x
            else:
                x = tl.load(there, mask=start + k < DEPTH, other=0).to(tl.float32) * _unit(k, BITS)
                product = _values(number, ROWS, STEP, BITS) * x[None, :]
            sums = tl.sum(tl.reshape(product, (ROWS, STEP // RUN, RUN)), 2)
            if scales is not None:
                sums *= scaled[step - begin].to(tl.float32)
            acc += sums
    return acc


@triton.jit
def _few_gate_up(partial, text_bias, x, w, scales, T, experts, act, H: tl.constexpr, WIDTH: tl.constexpr,
                 K: tl.constexpr, E: tl.constexpr, NORM_MIN: tl.constexpr, SPLITS: tl.constexpr, BITS: tl.constexpr,
                 GROUP: tl.constexpr, FLOAT8: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr,
                 STEP: tl.constexpr, RUN: tl.constexpr, AHEAD: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Grid (T·K, blocks of rows): those of one block are at work together: an expert of two tokens is read once."""
    slot = tl.program_id(0)
    block = tl.program_id(1)
    expert, weight = _routing(partial, text_bias, slot // K, T, slot % K, E, K, SPLITS, NORM_MIN, BLOCK_E, BLOCK_P)
    if block == 0:
        tl.store(experts + slot, expert.to(tl.int64))
    acc = tl.zeros((ROWS, STEP // RUN), tl.float32)
    acc = _add_products(acc, x + (slot // K).to(tl.int64) * H, w, scales, (expert,), block * ROWS, 2 * WIDTH, H, BITS,
                        GROUP, FLOAT8, ROWS, STEP, RUN, AHEAD)  # fmt: skip
    gate, up = tl.split(tl.reshape(tl.sum(acc, 1), (ROWS // 2, 2)))
    value = gate / (1 + tl.exp(-gate)) * up * weight
    i = block * (ROWS // 2) + tl.arange(0, ROWS // 2)
    tl.store(act + slot.to(tl.int64) * WIDTH + i, value.to(act.dtype.element_ty), mask=i < WIDTH)


@triton.jit(do_not_specialize=["T"])
def gate_up(partial, text_bias, x, text_gate_up, text_gate_up_scales, T, experts, slots, weights, few_act,
            H: tl.constexpr, WIDTH: tl.constexpr, K: tl.constexpr, E: tl.constexpr, NORM_MIN: tl.constexpr,
            SPLITS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, FLOAT8: tl.constexpr, FEW: tl.constexpr,
            BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr, STEP: tl.constexpr, RUN: tl.constexpr, AHEAD: tl.constexpr,
            ROWS: tl.constexpr, BLOCK_T: tl.constexpr):  # fmt: skip
    """experts (T, K) int64, best first, and few_act (T·K, WIDTH) in their order: weight · silu(gate) · up.

    Rounded once. Weight rows of gate and up stand in turn; a program has ROWS of them. Every program chooses its
    token's experts by itself, from a few KiB of logits, which takes less than a launch.

    With `slots` and `weights`: so for up to FEW tokens; for more only experts, slots and weights, by `route`.
    """
    if slots is None:
        _few_gate_up(partial, text_bias, x, text_gate_up, text_gate_up_scales, T, experts, few_act, H, WIDTH, K, E,
                     NORM_MIN, SPLITS, BITS, GROUP, FLOAT8, BLOCK_E, BLOCK_P, STEP, RUN, AHEAD, ROWS)  # fmt: skip
    else:
        if T <= FEW:
            _few_gate_up(partial, text_bias, x, text_gate_up, text_gate_up_scales, T, experts, few_act, H, WIDTH, K, E,
                         NORM_MIN, SPLITS, BITS, GROUP, FLOAT8, BLOCK_E, BLOCK_P, STEP, RUN, AHEAD, ROWS)  # fmt: skip
        else:
            route(partial, None, text_bias, None, T, experts, slots, weights, E, K, SPLITS, NORM_MIN, BLOCK_T, BLOCK_E)


@triton.jit
def _clamped(experts, place, E: tl.constexpr):
    """An expert within the tensors, whatever `experts` holds: TensorRT times kernels on inputs of its own."""
    return tl.minimum(tl.maximum(tl.load(experts + place), 0), E - 1)


@triton.jit
def _few_down(experts, act, w, scales, y, H: tl.constexpr, WIDTH: tl.constexpr, K: tl.constexpr, E: tl.constexpr,
              BITS: tl.constexpr, GROUP: tl.constexpr, FLOAT8: tl.constexpr, STEP: tl.constexpr, RUN: tl.constexpr,
              AHEAD: tl.constexpr, TOGETHER: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Grid (T, blocks of rows)."""
    token = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * ROWS
    acc = tl.zeros((ROWS, STEP // RUN), tl.float32)
    for slot in range(0, K, TOGETHER):
        place = token * K + slot
        some = (_clamped(experts, place, E),)
        if TOGETHER == 2:
            some += (_clamped(experts, place + 1, E),)
        acc = _add_products(acc, act + place * WIDTH, w, scales, some, first, H, WIDTH, BITS, GROUP, FLOAT8, ROWS,
                            STEP, RUN, AHEAD)  # fmt: skip
    h = first + tl.arange(0, ROWS)
    tl.store(y + token * H + h, tl.sum(acc, 1).to(y.dtype.element_ty), mask=h < H)


@triton.jit(do_not_specialize=["T"])
def down(experts, few_act, text_down, text_down_scales, out, T, y, H: tl.constexpr, WIDTH: tl.constexpr,
         K: tl.constexpr, E: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, FLOAT8: tl.constexpr,
         FEW: tl.constexpr, STEP: tl.constexpr, RUN: tl.constexpr, AHEAD: tl.constexpr, TOGETHER: tl.constexpr,
         ROWS: tl.constexpr, BLOCK_H: tl.constexpr):  # fmt: skip
    """y (T, H): the down projections of a token's K experts, added in float32, best first.

    A program has ROWS of the rows of all K experts, so that nothing is left to be added; TOGETHER, 1 or 2, divides K.
    With `out`, the down projections by slot: so for up to FEW tokens; for more their sum, by `combine`.
    """
    if out is None:
        _few_down(experts, few_act, text_down, text_down_scales, y, H, WIDTH, K, E, BITS, GROUP, FLOAT8, STEP, RUN,
                  AHEAD, TOGETHER, ROWS)  # fmt: skip
    else:
        if T <= FEW:
            _few_down(experts, few_act, text_down, text_down_scales, y, H, WIDTH, K, E, BITS, GROUP, FLOAT8, STEP, RUN,
                      AHEAD, TOGETHER, ROWS)  # fmt: skip
        else:
            combine(out, y, K, H, BLOCK_H)
