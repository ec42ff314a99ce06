"""Split-KV attention kernels of a decode step: each row's keys in splits, then the splits merged.

A row of a step attends to the tokens that are there, not to the cache's capacity. Query heads that share a key head are
one program's, so that a key is read once. Scores, maxima and sums are float32; the splits are merged in one program
each, in an order that depends on nothing.
"""

import triton
import triton.language as tl


@triton.jit
def _length(past_lengths, row, C: tl.constexpr):
    """Tokens in the cache with the new one: 1 to C, whatever the input holds, as a builder may time on any."""
    past = tl.load(past_lengths + row)
    return tl.minimum(tl.maximum(past, 0), C - 1).to(tl.int32) + 1


@triton.jit
def attend(q, present_key, present_value, past_lengths, weighted, highest, total, KV_HEADS: tl.constexpr,
           GROUP: tl.constexpr, D: tl.constexpr, C: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
           ROWS: tl.constexpr, COLUMNS: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Attend to every SPLITS-th block of a row's keys, from block `split` on.

    q (B, 1, KV_HEADS·GROUP·D), scaled by 1/sqrt(D); present_key and present_value (B, KV_HEADS, C, D), the new token
    among them. weighted (B, SPLITS, KV_HEADS·GROUP, D) float32 is the sum of values times exp(score - highest);
    highest and total, (B, SPLITS, KV_HEADS·GROUP) float32, the highest score and the sum of these weights. Splits of no
    tokens write nothing. Grid (SPLITS, KV_HEADS, B). ROWS and COLUMNS are GROUP and D as the matrix units take them.
    """
    split = tl.program_id(0)
    row = tl.program_id(2).to(tl.int64)
    head = row * KV_HEADS + tl.program_id(1)
    length = _length(past_lengths, row, C)
    if split * BLOCK < length:
        member = tl.arange(0, ROWS)
        d = tl.arange(0, COLUMNS)
        place = tl.arange(0, BLOCK)
        of_group = (member < GROUP)[:, None] & (d < D)[None, :]
        query = tl.load(q + (head * GROUP + member)[:, None] * D + d[None, :], mask=of_group, other=0)
        if UPCAST:
            query = query.to(tl.float32)
        best = tl.full((ROWS,), -1.0e30, tl.float32)
        mass = tl.zeros((ROWS,), tl.float32)
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
        start = split * BLOCK
        while start < length:
            token = start + place
            there = (token < length)[:, None] & (d < D)[None, :]
            address = head * (C * D) + token[:, None] * D + d[None, :]
            key = tl.load(present_key + address, mask=there, other=0)
            value = tl.load(present_value + address, mask=there, other=0)
            if UPCAST:
                key = key.to(tl.float32)
                value = value.to(tl.float32)
            scores = tl.dot(query, tl.trans(key), input_precision="ieee")
            scores = tl.where((token < length)[None, :], scores, float("-inf"))
            higher = tl.maximum(best, tl.max(scores, 1))
            weights = tl.exp(scores - higher[:, None])
            before = tl.exp(best - higher)
            mass = mass * before + tl.sum(weights, 1)
            acc = acc * before[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
            best = higher
            start += SPLITS * BLOCK
        out = (row * SPLITS + split) * (KV_HEADS * GROUP) + tl.program_id(1) * GROUP + member
        tl.store(weighted + out[:, None] * D + d[None, :], acc, mask=of_group)
        tl.store(highest + out, best, mask=member < GROUP)
        tl.store(total + out, mass, mask=member < GROUP)


@triton.jit
def merge(q, present_key, weighted, highest, total, past_lengths, y, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
          D: tl.constexpr, C: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
          COLUMNS: tl.constexpr):  # fmt: skip
    """y (B, 1, KV_HEADS·GROUP·D) from what `attend` has written; q and present_key give their sizes alone.

    Grid (KV_HEADS·GROUP, B). ROWS and COLUMNS are SPLITS and D up to powers of two.
    """
    row = tl.program_id(1).to(tl.int64)
    query_head = tl.program_id(0)
    split = tl.arange(0, ROWS)
    d = tl.arange(0, COLUMNS)
    there = (split < SPLITS) & (split * BLOCK < _length(past_lengths, row, C))
    place = (row * SPLITS + split) * (KV_HEADS * GROUP) + query_head
    best = tl.load(highest + place, mask=there, other=-1.0e30)
    share = tl.exp(best - tl.max(best, 0))
    mass = tl.sum(share * tl.load(total + place, mask=there, other=0), 0)
    values = tl.load(weighted + place[:, None] * D + d[None, :], mask=there[:, None] & (d < D)[None, :], other=0)
    result = tl.sum(values * share[:, None], 0) / mass
    out = (row * (KV_HEADS * GROUP) + query_head) * D + d
    tl.store(y + out, result.to(y.dtype.element_ty), mask=d < D)
