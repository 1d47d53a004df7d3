"""Products and rounding of blocks, the same compiled and in Triton's interpreter.

The interpreter multiplies the bits of bf16 numbers as integers, and cuts them off where a GPU
rounds. There both are done in fp32, which gives what a GPU gives: it multiplies bf16 exactly.
"""

from __future__ import annotations

import triton
import triton.language as tl

_INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b, acc):
    """a @ b + acc with every product and sum in fp32."""
    if _INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def product(a, b):
    """a @ b with every product and sum in fp32."""
    if _INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x rounded to dtype: to the nearest, ties to even."""
    if _INTERPRETED and dtype == tl.bfloat16 and x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)
