"""Routing kernels: router logits, the choice of k experts a token, and the order of tokens by expert group and expert.

One expert group or two: without `token_types` and `vision_*` (None at compile time) every token is text. Experts are
counted over both expert groups, the vision expert group's from E on. A slot is one of a token's k places; slots stand
in ascending order of expert, which is the order that outputs are added in.
"""

import triton
import triton.language as tl


@triton.jit
def _expert_group_logits(x, gate, token, inside, split, H: tl.constexpr, E: tl.constexpr, SPLITS: tl.constexpr,
                 BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_E: tl.constexpr):  # fmt: skip
    """This split's share of x · gate for a block of tokens, in float32 throughout: (BLOCK_T, BLOCK_E)."""
    SHARE: tl.constexpr = (H + SPLITS * BLOCK_H - 1) // (SPLITS * BLOCK_H) * BLOCK_H
    expert = tl.arange(0, BLOCK_E)
    acc = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    for start in range(0, SHARE, BLOCK_H):
        h = split * SHARE + start + tl.arange(0, BLOCK_H)
        rows = tl.load(x + token[:, None] * H + h[None, :], mask=inside[:, None] & (h < H)[None, :], other=0)
        real = (h < H)[:, None] & (expert < E)[None, :]
        columns = tl.load(gate + h[:, None] * E + expert[None, :], mask=real, other=0)
        acc = tl.dot(rows.to(tl.float32), columns, acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=["T"])
def logits(x, token_types, text_gate, vision_gate, T, partial, H: tl.constexpr, E: tl.constexpr, SPLITS: tl.constexpr,
           BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_E: tl.constexpr):  # fmt: skip
    """partial (SPLITS, T, E) float32: each token's router logits by its own expert group, H cut into SPLITS shares.

    Grid (blocks of tokens, SPLITS). Shares are added in order by `route`, so a result does not depend on timing.
    """
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside = token < T
    row = token.to(tl.int64)
    split = tl.program_id(1)
    if vision_gate is None:
        acc = _expert_group_logits(x, text_gate, row, inside, split, H, E, SPLITS, BLOCK_T, BLOCK_H, BLOCK_E)
    else:
        vision = tl.load(token_types + token, mask=inside, other=0) != 0
        acc = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
        if tl.max((inside & ~vision).to(tl.int32)) > 0:
            acc = _expert_group_logits(x, text_gate, row, inside, split, H, E, SPLITS, BLOCK_T, BLOCK_H, BLOCK_E)
        if tl.max(vision.to(tl.int32)) > 0:
            other = _expert_group_logits(x, vision_gate, row, inside, split, H, E, SPLITS, BLOCK_T, BLOCK_H, BLOCK_E)
            acc = tl.where(vision[:, None], other, acc)
    expert = tl.arange(0, BLOCK_E)
    place = (split * T.to(tl.int64) + row)[:, None] * E + expert[None, :]
    tl.store(partial + place, acc, mask=inside[:, None] & (expert < E)[None, :])


@triton.jit(do_not_specialize=["T"])
def route(partial, token_types, text_bias, vision_bias, T, experts, slots, weights, E: tl.constexpr, K: tl.constexpr,
          SPLITS: tl.constexpr, NORM_MIN: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr):  # fmt: skip
    """Softmax, top-k of probability plus bias, unbiased weights over their sum (at least NORM_MIN).

    experts (T, K) int64, best first, equal scores to the lower expert; slots (T, K) int32, the same experts ascending;
    weights (T, K) float32, of `slots`. Grid (blocks of tokens,). K distinct experts are chosen even from NaN, so that
    later kernels stay within their tensors.
    """
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside = token < T
    row = token.to(tl.int64)
    expert = tl.arange(0, BLOCK_E)
    real = inside[:, None] & (expert < E)[None, :]
    logit = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    for split in tl.static_range(SPLITS):
        place = (split * T.to(tl.int64) + row)[:, None] * E + expert[None, :]
        logit += tl.load(partial + place, mask=real, other=0)
    logit = tl.where((expert < E)[None, :], logit, float("-inf"))
    bias = tl.load(text_bias + expert, mask=expert < E, other=0)[None, :]
    first = tl.zeros((BLOCK_T,), tl.int32)
    if vision_bias is not None:
        vision = tl.load(token_types + token, mask=inside, other=0) != 0
        bias = tl.where(vision[:, None], tl.load(vision_bias + expert, mask=expert < E, other=0)[None, :], bias)
        first = tl.where(vision, E, 0)

    shifted = tl.exp(logit - tl.max(logit, 1)[:, None])
    probs = shifted / tl.sum(shifted, 1)[:, None]
    # -inf is kept for what may not be chosen (again); maximum also turns NaN into a number.
    scores = tl.where((expert < E)[None, :], tl.maximum(probs + bias, -3.0e38), float("-inf"))
    picked = tl.zeros((BLOCK_T, BLOCK_E), tl.int32)
    for slot in range(K):
        best = tl.argmax(scores, 1, tie_break_left=True)
        tl.store(experts + row * K + slot, (best + first).to(tl.int64), mask=inside)
        hit = expert[None, :] == best[:, None]
        picked = tl.where(hit, 1, picked)
        scores = tl.where(hit, float("-inf"), scores)

    total = tl.sum(tl.where(picked == 1, probs, 0.0), 1)
    weight = probs / tl.maximum(total, NORM_MIN)[:, None]
    place = row[:, None] * K + tl.cumsum(picked, 1) - 1
    tl.store(slots + place, first[:, None] + expert[None, :], mask=real & (picked == 1))
    tl.store(weights + place, weight, mask=real & (picked == 1))


@triton.jit(do_not_specialize=["T"])
def sort(slots, text_bias, vision_bias, T, offsets, order, K: tl.constexpr, EXPERTS: tl.constexpr,
         BLOCK_S: tl.constexpr):  # fmt: skip
    """Group slots by expert: those of expert e are order[offsets[e]:offsets[e + 1]], in order of token.

    slots (T, K), offsets (EXPERTS + 1,), order (T·K,), all int32; the biases only say how many experts there are.
    Grid (EXPERTS,): each program counts the slots of lower experts, then lays out its own, so no two programs write
    one place and nothing depends on timing.
    """
    expert = tl.program_id(0)
    lane = tl.arange(0, BLOCK_S)
    count = T * K
    lower = tl.zeros((BLOCK_S,), tl.int32)
    start = 0
    while start < count:  # not `for`: the interpreter takes no bound that is known at run time, under NumPy 2.4
        chosen = tl.load(slots + start + lane, mask=start + lane < count, other=EXPERTS)
        lower += (chosen < expert).to(tl.int32)
        start += BLOCK_S
    place = tl.sum(lower)
    tl.store(offsets + expert, place)
    start = 0
    while start < count:
        chosen = tl.load(slots + start + lane, mask=start + lane < count, other=EXPERTS)
        mine = (chosen == expert).to(tl.int32)
        tl.store(order + place + tl.cumsum(mine) - 1, start + lane, mask=mine == 1)
        place += tl.sum(mine)
        start += BLOCK_S
    if expert == EXPERTS - 1:
        tl.store(offsets + EXPERTS, place)
