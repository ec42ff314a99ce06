"""A tile of a matrix product whose weights are stored as they are multiplied, or quantized with group scales.

Quantized values are turned into numbers in registers, on their way to the matrix unit: weights are read once, in the
bytes that they are stored in. An integer of up to 8 bits and an e4m3 number are exact in bfloat16 and float16 alike, so
the product is one of exact quantized values, and a group's float32 sum is multiplied by its scale: nothing is rounded
in between.
"""

import triton
import triton.language as tl


@triton.jit
def unpack_to(dtype, w, n, start, WIDTH: tl.constexpr, DEPTH: tl.constexpr, BITS: tl.constexpr, FLOAT8: tl.constexpr,
             STEP: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Return w[n, start:start + STEP] as numbers, without their scale: in `dtype`, of 4 bits for UPCAST in float32.

    w (WIDTH, DEPTH) is packed in words. With 4 bits the first of two neighbours is a byte's lower half. Integers are
    stored moved up by half their range.
    """
    ROW: tl.constexpr = DEPTH * BITS // 8
    SOME: tl.constexpr = STEP * BITS // 8
    place = n[:, None] * ROW + (start * BITS // 8 + tl.arange(0, SOME))[None, :]
    stored = tl.load(w.to(tl.pointer_type(tl.uint8), bitcast=True) + place, (n < WIDTH)[:, None], other=0)
    if FLOAT8:
        numbers = stored.to(tl.float8e4nv, bitcast=True)
        if dtype == tl.bfloat16:  # by way of float32, or each is converted alone, by a unit with fewer lanes
            return numbers.to(tl.float32).to(dtype)
        return numbers.to(dtype)
    # OR the integer into the mantissa of a power of two whose last bit is worth one, and subtract: two instructions of
    # the common units, for 4 bits on two values at once, in place of a conversion, which takes a unit with fewer lanes.
    if BITS == 4 and dtype.primitive_bitwidth == 16:
        BASE: tl.constexpr = 0x4300 if dtype == tl.bfloat16 else 0x6400  # 128, or 1024 in float16
        CENTRE: tl.constexpr = 136.0 if dtype == tl.bfloat16 else 1032.0
        two = stored.to(tl.int16)
        moved = tl.interleave((two & 15) | BASE, (two >> 4) | BASE).to(dtype, bitcast=True)
        return moved.to(tl.float32) - CENTRE if UPCAST else moved - tl.full((), CENTRE, dtype)
    else:  # Triton takes returns of one type only where one branch is left
        if BITS == 4:
            stored = tl.interleave(stored & 15, stored >> 4)
        MIDDLE: tl.constexpr = 2.0**23 + 2 ** (BITS - 1)
        return ((stored.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - MIDDLE).to(dtype)


@triton.jit
def product(a, rows, inside, A_STRIDE: tl.constexpr, w, scales, matrix, first, WIDTH: tl.constexpr,
            DEPTH: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, FLOAT8: tl.constexpr, BLOCK_M: tl.constexpr,
            BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """a[rows, :DEPTH] · w[matrix, first:first + BLOCK_N, :DEPTH]ᵀ in float32: (BLOCK_M, BLOCK_N).

    w is (matrices, WIDTH, DEPTH): without `scales` in a's dtype; with them quantized values in words of 32 bits, and
    scales are (matrices, WIDTH, DEPTH / GROUP). SWAP puts the weight rows where matrix units are widest, for few rows
    of a.
    UPCAST: calculate in float32 (for the interpreter, whose bfloat16 arithmetic is wrong).
    """
    if scales is None:
        w += matrix.to(tl.int64) * (WIDTH * DEPTH)
    else:
        w += matrix.to(tl.int64) * (WIDTH * DEPTH * BITS // 32)
        scales += matrix.to(tl.int64) * (WIDTH * DEPTH // GROUP)
    n = first + tl.arange(0, BLOCK_N)
    # A step stays within one group.
    STEP: tl.constexpr = BLOCK_K if scales is None or BLOCK_K < GROUP else GROUP
    k = tl.arange(0, STEP)
    acc = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, DEPTH, STEP):
        deep = start + k < DEPTH
        left = tl.load(a + rows[:, None] * A_STRIDE + (start + k)[None, :], inside[:, None] & deep[None, :], other=0)
        if scales is None:
            place = n[:, None] * DEPTH + (start + k)[None, :]
            right = tl.load(w + place, (n < WIDTH)[:, None] & deep[None, :], other=0)
        else:
            right = unpack_to(a.dtype.element_ty, w, n, start, WIDTH, DEPTH, BITS, FLOAT8, STEP, UPCAST)
            scale = tl.load(scales + n * (DEPTH // GROUP) + start // GROUP, n < WIDTH, other=0).to(tl.float32)
        if UPCAST:
            left, right = left.to(tl.float32), right.to(tl.float32)
        if scales is None:
            if SWAP:
                acc = tl.dot(right, tl.trans(left), acc, input_precision="ieee")
            else:
                acc = tl.dot(left, tl.trans(right), acc, input_precision="ieee")
        else:
            if SWAP:
                acc += tl.dot(right, tl.trans(left), input_precision="ieee") * scale[:, None]
            else:
                acc += tl.dot(left, tl.trans(right), input_precision="ieee") * scale[None, :]
    if SWAP:
        acc = tl.trans(acc)
    return acc
