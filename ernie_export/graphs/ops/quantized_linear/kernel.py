"""The kernel of QuantizedLinear and Float8Linear."""

import triton
import triton.language as tl

from ernie_export.graphs.ops.quantized_linear.kernel_product import product


@triton.jit(do_not_specialize=["T"])
def linear(x, qweight, scales, T, y, N: tl.constexpr, K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
           FLOAT8: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
           SWAP: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """y (T, N): x (T, K) by the transposed weights. Grid (blocks of N, blocks of T).

    Blocks of outputs go first, so that programs at work together share the rows of x.
    """
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    row, inside = token.to(tl.int64), token < T
    first = tl.program_id(0) * BLOCK_N
    only = tl.full((), 0, tl.int64)
    acc = product(x, row, inside, K, qweight, scales, only, first, N, K, BITS, GROUP, FLOAT8,
                  BLOCK_M, BLOCK_N, BLOCK_K, SWAP, UPCAST)  # fmt: skip
    n = first + tl.arange(0, BLOCK_N)
    tl.store(y + row[:, None] * N + n[None, :], acc.to(y.dtype.element_ty), mask=inside[:, None] & (n < N)[None, :])
