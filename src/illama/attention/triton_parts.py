# mypy: allow-untyped-defs
"""What the Triton kernels share: products, rounding, rows in memory, rotation, the factor F; and rotation on its own.

Letters and conventions are those of `triton_kernels.py`. Two things are worked around where Triton's interpreter
differs from devices, under the compile-time flag INTERPRETED.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(a, b, accumulator, INTERPRETED: tl.constexpr):
    """accumulator + a b in float32. The interpreter multiplies the bit patterns of bfloat16, hence the cast there."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision="ieee")


@triton.jit
def rounded(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """float32 to dtype, to the nearest, ties to even, as devices do. The interpreter cuts bfloat16 off instead."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@triton.jit
def of_head(tensor, head, heads, stride_batch, stride_head):
    """Where a head begins; `head` counts over batch and heads. Large batches exceed 32-bit offsets."""
    return tensor + (head // heads).to(tl.int64) * stride_batch + (head % heads) * stride_head


@triton.jit
def load_rows(tensor, stride_token, rows, tokens, D: tl.constexpr, BD: tl.constexpr):
    """Rows of one head, (rows, BD), zero outside of tokens and channels."""
    channels = tl.arange(0, BD)
    inside = rows[:, None] < tokens
    if D != BD:
        inside = inside & (channels[None, :] < D)
    return tl.load(tensor + rows[:, None] * stride_token + channels[None, :], mask=inside, other=0.0)


@triton.jit
def store_rows(
    tensor, stride_token, rows, tokens, values, D: tl.constexpr, BD: tl.constexpr, INTERPRETED: tl.constexpr
):
    """Values (rows, BD) into rows of one head, rounded to its dtype; nothing outside of tokens and channels."""
    channels = tl.arange(0, BD)
    inside = rows[:, None] < tokens
    if D != BD:
        inside = inside & (channels[None, :] < D)
    values = rounded(values, tensor.dtype.element_ty, INTERPRETED)
    tl.store(tensor + rows[:, None] * stride_token + channels[None, :], values, mask=inside)


@triton.jit
def rotated(x, cos, sin, rows, tokens, D: tl.constexpr, BD: tl.constexpr, BACK: tl.constexpr):
    """Rotates the channel pairs (2j, 2j + 1) in float32 by the row's angles; BACK by the negative angles.

    Both channels of a pair lie in one thread's registers, so splitting and joining moves nothing.
    """
    pairs = tl.arange(0, BD // 2)
    inside = rows[:, None] < tokens
    if D != BD:
        inside = inside & (pairs[None, :] < D // 2)
    place = rows[:, None] * (D // 2) + pairs[None, :]
    cosine = tl.load(cos + place, mask=inside, other=0.0)
    sine = tl.load(sin + place, mask=inside, other=0.0)
    if BACK:
        sine = -sine
    first, second = tl.split(tl.reshape(x.to(tl.float32), (x.shape[0], BD // 2, 2)))
    turned = tl.join(first * cosine - second * sine, first * sine + second * cosine)
    return tl.reshape(turned, (x.shape[0], BD))


@triton.jit
def load_rotated(
    tensor, stride_token, cos, sin, rows, tokens,
    D: tl.constexpr, BD: tl.constexpr, ROPE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Rows of q or k, rotated if ROPE and rounded to their own dtype, as the rotation outside of the kernel does."""
    x = load_rows(tensor, stride_token, rows, tokens, D, BD)
    if ROPE:
        x = rounded(rotated(x, cos, sin, rows, tokens, D, BD, False), x.dtype, INTERPRETED)
    return x


@triton.jit
def soften(x, queries, keys, alpha, MODIFIED: tl.constexpr):
    """x * F; `queries` and `keys` hold token indices, shaped so that they broadcast to x."""
    seen = keys <= queries
    if MODIFIED:
        seen = seen | (queries == 0)
    return tl.where(seen, x, x * alpha)


@triton.jit
def rotate_kernel(
    q, k, q_turned, k_turned, cos, sin,
    q_batch, q_head, q_token, k_batch, k_head, k_token,
    q_turned_batch, q_turned_head, q_turned_token, k_turned_batch, k_turned_head, k_turned_token,
    heads, tokens,
    D: tl.constexpr, BD: tl.constexpr, BACK: tl.constexpr, INTERPRETED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """q and k of ROWS tokens of one head, rotated (BACK: by the negative angles) into tensors that may be q and k.

    One program turns both, so that it reads the tables once. Everything is read before anything is written.
    """
    block = tl.program_id(0) % tl.cdiv(tokens, ROWS)
    head = tl.program_id(0) // tl.cdiv(tokens, ROWS)
    q = of_head(q, head, heads, q_batch, q_head)
    k = of_head(k, head, heads, k_batch, k_head)
    q_turned = of_head(q_turned, head, heads, q_turned_batch, q_turned_head)
    k_turned = of_head(k_turned, head, heads, k_turned_batch, k_turned_head)
    rows = block * ROWS + tl.arange(0, ROWS)
    queries = rotated(load_rows(q, q_token, rows, tokens, D, BD), cos, sin, rows, tokens, D, BD, BACK)
    keys = rotated(load_rows(k, k_token, rows, tokens, D, BD), cos, sin, rows, tokens, D, BD, BACK)
    store_rows(q_turned, q_turned_token, rows, tokens, queries, D, BD, INTERPRETED)
    store_rows(k_turned, k_turned_token, rows, tokens, keys, D, BD, INTERPRETED)
