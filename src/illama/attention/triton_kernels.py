# mypy: allow-untyped-defs
"""Triton kernels of soft-causal attention (Eq. 2), forward and backward; started by `triton_launch.py`.

First what they share: products, rounding, rows in memory, rotation (also on its own), the factor F; where Triton's
interpreter differs from devices, under the flag INTERPRETED. Then kernels whose program works on a block of one head.
Last, those that give a whole head to one program, for short heads, of which there are many: what a program shares with
its neighbours, it keeps there; keys and values are read, and keys rotated, once per head.

With alpha the softness, S = scale q k^T, P = softmax(S) over all keys and F the factor 1 (key no later than the query)
or alpha (later key), O = (P * F) v. The backward pass recomputes P = exp(S - lse) from the saved log-sum-exp:

    delta = rowsum(dO * O)    dS = P * ((dO v^T) * F - delta)
    dq = scale dS k           dk = scale dS^T q                  dv = (P * F)^T dO

Every key is in the denominator, so S is computed in full; at alpha = 0 only the products P v, P^T dO and dO v^T of
later keys are left out. Each program owns the rows it writes: no atomics, the same bits at every run.

Letters: B batch, h heads, N tokens, d head width, BD d rounded up to a power of two. `lse` is in base 2 because exp2
is the instruction of the hardware: lse2 = log2 sum 2^(S log2(e)). A tensor's strides are those of batch, head and token
in elements; channels are contiguous. Tile sizes in capitals are compile-time constants.
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


@triton.jit
def forward_row_kernel(
    q, k, v, out, lse, softness, cos, sin,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token, out_batch, out_head, out_token,
    heads, tokens, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, ROPE: tl.constexpr, MODIFIED: tl.constexpr, INTERPRETED: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, TILES: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """out and lse of QUERIES queries of one head whose whole rows of scores stay in registers (N <= 256).

    The row is held as TILES - 1 tiles of KEYS keys and one of LAST, so that P v can stop at the diagonal and 197
    tokens cost 208 columns, not 256.
    """
    block = tl.program_id(0) % tl.cdiv(tokens, QUERIES)
    head = tl.program_id(0) // tl.cdiv(tokens, QUERIES)
    q = of_head(q, head, heads, q_batch, q_head)
    k = of_head(k, head, heads, k_batch, k_head)
    v = of_head(v, head, heads, v_batch, v_head)
    out = of_head(out, head, heads, out_batch, out_head)
    alpha = tl.load(softness)
    rows = block * QUERIES + tl.arange(0, QUERIES)
    queries = load_rotated(q, q_token, cos, sin, rows, tokens, D, BD, ROPE, INTERPRETED)

    scores = ()
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    for tile in tl.static_range(TILES):
        columns = tile * KEYS + tl.arange(0, KEYS if tile < TILES - 1 else LAST)
        keys = load_rotated(k, k_token, cos, sin, columns, tokens, D, BD, ROPE, INTERPRETED)
        zeros = tl.zeros((QUERIES, KEYS if tile < TILES - 1 else LAST), tl.float32)
        score = dot(queries, tl.trans(keys), zeros, INTERPRETED)
        if tile == TILES - 1:
            score = tl.where(columns[None, :] < tokens, score, float("-inf"))
        top = tl.maximum(top, tl.max(score, 1))
        scores += (score,)  # type: ignore[assignment]

    # At alpha = 0 no query of this block multiplies a value behind its end, save row 0 of the modified mask.
    end = tl.where(alpha == 0.0, (block + 1) * QUERIES, tokens)
    if MODIFIED:
        end = tl.where(block == 0, tokens, end)
    total = tl.zeros((QUERIES,), tl.float32)
    attended = tl.zeros((QUERIES, BD), tl.float32)
    for tile in tl.static_range(TILES):
        columns = tile * KEYS + tl.arange(0, KEYS if tile < TILES - 1 else LAST)
        weights = tl.exp2(scores[tile] * scale_log2 - (top * scale_log2)[:, None])
        total += tl.sum(weights, 1)
        if tile * KEYS < end:
            values = load_rows(v, v_token, columns, tokens, D, BD)
            weights = soften(weights, rows[:, None], columns[None, :], alpha, MODIFIED)
            attended = dot(rounded(weights, values.dtype, INTERPRETED), values, attended, INTERPRETED)

    store_rows(out, out_token, rows, tokens, attended / total[:, None], D, BD, INTERPRETED)
    tl.store(lse + head * tokens + rows, top * scale_log2 + tl.log2(total), mask=rows < tokens)


@triton.jit
def _forward_tile(
    queries, k, v, cos, sin, k_token, v_token, rows, columns, tokens, scale_log2, alpha, top, total, attended,
    D: tl.constexpr, BD: tl.constexpr, ROPE: tl.constexpr, MODIFIED: tl.constexpr, INTERPRETED: tl.constexpr,
    MASK: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax; MASK where a key may be later than a query or beyond the end, VALUES with P v."""
    keys = load_rotated(k, k_token, cos, sin, columns, tokens, D, BD, ROPE, INTERPRETED)
    zeros = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    scores = dot(queries, tl.trans(keys), zeros, INTERPRETED)
    if MASK:
        scores = tl.where(columns[None, :] < tokens, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
    weights = tl.exp2(scores * scale_log2 - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(weights, 1)
    if VALUES:
        values = load_rows(v, v_token, columns, tokens, D, BD)
        if MASK:
            weights = soften(weights, rows[:, None], columns[None, :], alpha, MODIFIED)
        attended = dot(rounded(weights, values.dtype, INTERPRETED), values, attended * shrink[:, None], INTERPRETED)
    return new_top, total, attended


@triton.jit
def forward_online_kernel(
    q, k, v, out, lse, softness, cos, sin,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token, out_batch, out_head, out_token,
    heads, tokens, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, ROPE: tl.constexpr, MODIFIED: tl.constexpr, INTERPRETED: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """out and lse of QUERIES queries of one head, keys in tiles of KEYS with a running maximum (any N)."""
    block = tl.program_id(0) % tl.cdiv(tokens, QUERIES)
    head = tl.program_id(0) // tl.cdiv(tokens, QUERIES)
    q = of_head(q, head, heads, q_batch, q_head)
    k = of_head(k, head, heads, k_batch, k_head)
    v = of_head(v, head, heads, v_batch, v_head)
    out = of_head(out, head, heads, out_batch, out_head)
    alpha = tl.load(softness)
    rows = block * QUERIES + tl.arange(0, QUERIES)
    queries = load_rotated(q, q_token, cos, sin, rows, tokens, D, BD, ROPE, INTERPRETED)

    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    attended = tl.zeros((QUERIES, BD), tl.float32)
    past = block * QUERIES // KEYS * KEYS  # tiles before it hold keys that every query of this block sees
    for start in range(0, past, KEYS):
        top, total, attended = _forward_tile(
            queries, k, v, cos, sin, k_token, v_token, rows, start + tl.arange(0, KEYS), tokens, scale_log2, alpha,
            top, total, attended, D, BD, ROPE, MODIFIED, INTERPRETED, False, True,
        )  # fmt: skip
    # From `end` on, values have the factor 0.
    end = tl.where(alpha == 0.0, tl.minimum(tl.cdiv((block + 1) * QUERIES, KEYS) * KEYS, tokens), tokens)
    if MODIFIED:
        end = tl.where(block == 0, tokens, end)
    for start in range(past, end, KEYS):
        top, total, attended = _forward_tile(
            queries, k, v, cos, sin, k_token, v_token, rows, start + tl.arange(0, KEYS), tokens, scale_log2, alpha,
            top, total, attended, D, BD, ROPE, MODIFIED, INTERPRETED, True, True,
        )  # fmt: skip
    values_top = top
    for start in range(end, tokens, KEYS):
        top, total, attended = _forward_tile(
            queries, k, v, cos, sin, k_token, v_token, rows, start + tl.arange(0, KEYS), tokens, scale_log2, alpha,
            top, total, attended, D, BD, ROPE, MODIFIED, INTERPRETED, True, False,
        )  # fmt: skip

    attended *= (tl.exp2(values_top - top) / total)[:, None]
    store_rows(out, out_token, rows, tokens, attended, D, BD, INTERPRETED)
    tl.store(lse + head * tokens + rows, top + tl.log2(total), mask=rows < tokens)


@triton.jit
def _queries_tile(
    queries, d_out, k, v, cos, sin, k_token, v_token, rows, columns, tokens, scale_log2, alpha, lse, delta, d_q,
    D: tl.constexpr, BD: tl.constexpr, ROPE: tl.constexpr, MODIFIED: tl.constexpr, INTERPRETED: tl.constexpr,
    MASK: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """d_q plus dS k of one tile of keys; without VALUES these keys' values have the factor 0."""
    keys = load_rotated(k, k_token, cos, sin, columns, tokens, D, BD, ROPE, INTERPRETED)
    zeros = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    scores = dot(queries, tl.trans(keys), zeros, INTERPRETED)
    weights = tl.exp2(scores * scale_log2 - lse[:, None])
    if MASK:
        weights = tl.where(columns[None, :] < tokens, weights, 0.0)
    if VALUES:
        values = load_rows(v, v_token, columns, tokens, D, BD)
        d_weights = dot(d_out, tl.trans(values), zeros, INTERPRETED)
        if MASK:
            d_weights = soften(d_weights, rows[:, None], columns[None, :], alpha, MODIFIED)
        d_scores = weights * (d_weights - delta[:, None])
    else:
        d_scores = -weights * delta[:, None]
    return dot(rounded(d_scores, keys.dtype, INTERPRETED), keys, d_q, INTERPRETED)


@triton.jit
def backward_queries_kernel(
    q, k, v, out, d_out, lse, delta, d_q, softness, cos, sin,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token, out_batch, out_head, out_token,
    d_out_batch, d_out_head, d_out_token, d_q_batch, d_q_head, d_q_token,
    heads, tokens, scale, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, ROPE: tl.constexpr, MODIFIED: tl.constexpr, INTERPRETED: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """d_q of QUERIES queries of one head, and their delta for the kernel that follows."""
    block = tl.program_id(0) % tl.cdiv(tokens, QUERIES)
    head = tl.program_id(0) // tl.cdiv(tokens, QUERIES)
    q = of_head(q, head, heads, q_batch, q_head)
    k = of_head(k, head, heads, k_batch, k_head)
    v = of_head(v, head, heads, v_batch, v_head)
    out = of_head(out, head, heads, out_batch, out_head)
    d_out = of_head(d_out, head, heads, d_out_batch, d_out_head)
    d_q = of_head(d_q, head, heads, d_q_batch, d_q_head)
    alpha = tl.load(softness)
    rows = block * QUERIES + tl.arange(0, QUERIES)
    queries = load_rotated(q, q_token, cos, sin, rows, tokens, D, BD, ROPE, INTERPRETED)
    d_rows = load_rows(d_out, d_out_token, rows, tokens, D, BD)
    out_rows = load_rows(out, out_token, rows, tokens, D, BD)
    delta_rows = tl.sum(d_rows.to(tl.float32) * out_rows.to(tl.float32), 1)
    tl.store(delta + head * tokens + rows, delta_rows, mask=rows < tokens)
    # Rows beyond the end get the weight 2^-inf = 0.
    lse_rows = tl.load(lse + head * tokens + rows, mask=rows < tokens, other=float("inf"))

    d_queries = tl.zeros((QUERIES, BD), tl.float32)
    past = block * QUERIES // KEYS * KEYS
    for start in range(0, past, KEYS):
        d_queries = _queries_tile(
            queries, d_rows, k, v, cos, sin, k_token, v_token, rows, start + tl.arange(0, KEYS), tokens, scale_log2,
            alpha, lse_rows, delta_rows, d_queries, D, BD, ROPE, MODIFIED, INTERPRETED, False, True,
        )  # fmt: skip
    end = tl.where(alpha == 0.0, tl.minimum(tl.cdiv((block + 1) * QUERIES, KEYS) * KEYS, tokens), tokens)
    if MODIFIED:
        end = tl.where(block == 0, tokens, end)
    for start in range(past, end, KEYS):
        d_queries = _queries_tile(
            queries, d_rows, k, v, cos, sin, k_token, v_token, rows, start + tl.arange(0, KEYS), tokens, scale_log2,
            alpha, lse_rows, delta_rows, d_queries, D, BD, ROPE, MODIFIED, INTERPRETED, True, True,
        )  # fmt: skip
    for start in range(end, tokens, KEYS):
        d_queries = _queries_tile(
            queries, d_rows, k, v, cos, sin, k_token, v_token, rows, start + tl.arange(0, KEYS), tokens, scale_log2,
            alpha, lse_rows, delta_rows, d_queries, D, BD, ROPE, MODIFIED, INTERPRETED, True, False,
        )  # fmt: skip

    d_queries *= scale
    if ROPE:
        d_queries = rotated(d_queries, cos, sin, rows, tokens, D, BD, True)
    store_rows(d_q, d_q_token, rows, tokens, d_queries, D, BD, INTERPRETED)


@triton.jit
def _keys_tile(
    keys, values, q, d_out, lse, delta, cos, sin, q_token, d_out_token, rows, columns, tokens, scale_log2, alpha,
    d_k, d_v,
    D: tl.constexpr, BD: tl.constexpr, ROPE: tl.constexpr, MODIFIED: tl.constexpr, INTERPRETED: tl.constexpr,
    MASK: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """d_k and d_v plus one tile of queries' share. Scores are transposed: what multiplies dO and q is the left operand.

    Without VALUES these queries look at the values with the factor 0.
    """
    queries = load_rotated(q, q_token, cos, sin, rows, tokens, D, BD, ROPE, INTERPRETED)
    lse_rows = tl.load(lse + rows, mask=rows < tokens, other=float("inf"))
    delta_rows = tl.load(delta + rows, mask=rows < tokens, other=0.0)
    zeros = tl.zeros((columns.shape[0], rows.shape[0]), tl.float32)
    scores = dot(keys, tl.trans(queries), zeros, INTERPRETED)
    weights = tl.exp2(scores * scale_log2 - lse_rows[None, :])
    if VALUES:
        d_rows = load_rows(d_out, d_out_token, rows, tokens, D, BD)
        d_weights = dot(values, tl.trans(d_rows), zeros, INTERPRETED)
        softened = weights
        if MASK:
            softened = soften(weights, rows[None, :], columns[:, None], alpha, MODIFIED)
            d_weights = soften(d_weights, rows[None, :], columns[:, None], alpha, MODIFIED)
        d_v = dot(rounded(softened, d_rows.dtype, INTERPRETED), d_rows, d_v, INTERPRETED)
        d_scores = weights * (d_weights - delta_rows[None, :])
    else:
        d_scores = -weights * delta_rows[None, :]
    return dot(rounded(d_scores, queries.dtype, INTERPRETED), queries, d_k, INTERPRETED), d_v


@triton.jit
def backward_keys_kernel(
    q, k, v, d_out, lse, delta, d_k, d_v, softness, cos, sin,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    d_out_batch, d_out_head, d_out_token, d_k_batch, d_k_head, d_k_token, d_v_batch, d_v_head, d_v_token,
    heads, tokens, scale, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, ROPE: tl.constexpr, MODIFIED: tl.constexpr, INTERPRETED: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """d_k and d_v of KEYS keys of one head, queries in tiles of QUERIES."""
    block = tl.program_id(0) % tl.cdiv(tokens, KEYS)
    head = tl.program_id(0) // tl.cdiv(tokens, KEYS)
    q = of_head(q, head, heads, q_batch, q_head)
    k = of_head(k, head, heads, k_batch, k_head)
    v = of_head(v, head, heads, v_batch, v_head)
    d_out = of_head(d_out, head, heads, d_out_batch, d_out_head)
    d_k = of_head(d_k, head, heads, d_k_batch, d_k_head)
    d_v = of_head(d_v, head, heads, d_v_batch, d_v_head)
    lse += head * tokens
    delta += head * tokens
    alpha = tl.load(softness)
    columns = block * KEYS + tl.arange(0, KEYS)
    keys = load_rotated(k, k_token, cos, sin, columns, tokens, D, BD, ROPE, INTERPRETED)
    values = load_rows(v, v_token, columns, tokens, D, BD)

    d_keys = tl.zeros((KEYS, BD), tl.float32)
    d_values = tl.zeros((KEYS, BD), tl.float32)
    earlier = block * KEYS // QUERIES * QUERIES  # tiles before it hold queries to which every key here is later
    begin = tl.where((alpha == 0.0) & (not MODIFIED), earlier, 0)  # the modified mask's row 0 sees all keys
    for start in range(0, begin, QUERIES):
        d_keys, d_values = _keys_tile(
            keys, values, q, d_out, lse, delta, cos, sin, q_token, d_out_token, start + tl.arange(0, QUERIES), columns,
            tokens, scale_log2, alpha, d_keys, d_values, D, BD, ROPE, MODIFIED, INTERPRETED, True, False,
        )  # fmt: skip
    # From `later` on, every query sees every key of this block.
    later = tl.minimum(tl.cdiv((block + 1) * KEYS, QUERIES) * QUERIES, tokens)
    for start in range(begin, later, QUERIES):
        d_keys, d_values = _keys_tile(
            keys, values, q, d_out, lse, delta, cos, sin, q_token, d_out_token, start + tl.arange(0, QUERIES), columns,
            tokens, scale_log2, alpha, d_keys, d_values, D, BD, ROPE, MODIFIED, INTERPRETED, True, True,
        )  # fmt: skip
    for start in range(later, tokens, QUERIES):
        d_keys, d_values = _keys_tile(
            keys, values, q, d_out, lse, delta, cos, sin, q_token, d_out_token, start + tl.arange(0, QUERIES), columns,
            tokens, scale_log2, alpha, d_keys, d_values, D, BD, ROPE, MODIFIED, INTERPRETED, False, True,
        )  # fmt: skip

    d_keys *= scale
    if ROPE:
        d_keys = rotated(d_keys, cos, sin, columns, tokens, D, BD, True)
    store_rows(d_k, d_k_token, columns, tokens, d_keys, D, BD, INTERPRETED)
    store_rows(d_v, d_v_token, columns, tokens, d_values, D, BD, INTERPRETED)


@triton.jit
def forward_head_kernel(
    q, k, v, out, lse, softness, cos, sin,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token, out_batch, out_head, out_token,
    heads, tokens, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, ROPE: tl.constexpr, MODIFIED: tl.constexpr, INTERPRETED: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, TILES: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """out and lse of one head. Its keys and values lie in shared memory; tiles of QUERIES queries walk by.

    As in the row kernel a row of scores stays in registers: TILES tiles of KEYS keys, the last one of LAST.
    """
    head = tl.program_id(0)
    q = of_head(q, head, heads, q_batch, q_head)
    k = of_head(k, head, heads, k_batch, k_head)
    v = of_head(v, head, heads, v_batch, v_head)
    out = of_head(out, head, heads, out_batch, out_head)
    alpha = tl.load(softness)
    keys = ()
    values = ()
    for tile in tl.static_range(TILES):
        columns = tile * KEYS + tl.arange(0, KEYS if tile < TILES - 1 else LAST)
        keys += (load_rotated(k, k_token, cos, sin, columns, tokens, D, BD, ROPE, INTERPRETED),)  # type: ignore[assignment]
        values += (load_rows(v, v_token, columns, tokens, D, BD),)  # type: ignore[assignment]

    for start in range(0, tokens, QUERIES):
        rows = start + tl.arange(0, QUERIES)
        queries = load_rotated(q, q_token, cos, sin, rows, tokens, D, BD, ROPE, INTERPRETED)
        scores = ()
        top = tl.full((QUERIES,), float("-inf"), tl.float32)
        for tile in tl.static_range(TILES):
            columns = tile * KEYS + tl.arange(0, KEYS if tile < TILES - 1 else LAST)
            zeros = tl.zeros((QUERIES, KEYS if tile < TILES - 1 else LAST), tl.float32)
            score = dot(queries, tl.trans(keys[tile]), zeros, INTERPRETED)
            if tile == TILES - 1:
                score = tl.where(columns[None, :] < tokens, score, float("-inf"))
            top = tl.maximum(top, tl.max(score, 1))
            scores += (score,)  # type: ignore[assignment]

        # At alpha = 0 no query of this tile multiplies a value behind its end, save row 0 of the modified mask.
        end = tl.where(alpha == 0.0, start + QUERIES, tokens)
        if MODIFIED:
            end = tl.where(start == 0, tokens, end)
        total = tl.zeros((QUERIES,), tl.float32)
        attended = tl.zeros((QUERIES, BD), tl.float32)
        for tile in tl.static_range(TILES):
            columns = tile * KEYS + tl.arange(0, KEYS if tile < TILES - 1 else LAST)
            weights = tl.exp2(scores[tile] * scale_log2 - (top * scale_log2)[:, None])
            total += tl.sum(weights, 1)
            if tile * KEYS < end:
                weights = soften(weights, rows[:, None], columns[None, :], alpha, MODIFIED)
                attended = dot(rounded(weights, values[tile].dtype, INTERPRETED), values[tile], attended, INTERPRETED)
        store_rows(out, out_token, rows, tokens, attended / total[:, None], D, BD, INTERPRETED)
        tl.store(lse + head * tokens + rows, top * scale_log2 + tl.log2(total), mask=rows < tokens)


@triton.jit
def backward_head_kernel(
    q, k, v, out, d_out, lse, d_q, d_k, d_v, softness, cos, sin,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token, out_batch, out_head, out_token,
    d_out_batch, d_out_head, d_out_token, d_q_batch, d_q_head, d_q_token, d_k_batch, d_k_head, d_k_token,
    d_v_batch, d_v_head, d_v_token,
    heads, tokens, scale, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, ROPE: tl.constexpr, MODIFIED: tl.constexpr, INTERPRETED: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """All gradients of one head of at most QUERIES tokens: d_q in registers, tiles of KEYS keys walk by.

    Scores and dO v^T are formed once: five products instead of seven. delta never leaves the program. Every tile holds
    queries that see it, so there is no product to leave out at alpha = 0.
    """
    head = tl.program_id(0)
    q = of_head(q, head, heads, q_batch, q_head)
    k = of_head(k, head, heads, k_batch, k_head)
    v = of_head(v, head, heads, v_batch, v_head)
    out = of_head(out, head, heads, out_batch, out_head)
    d_out = of_head(d_out, head, heads, d_out_batch, d_out_head)
    d_q = of_head(d_q, head, heads, d_q_batch, d_q_head)
    d_k = of_head(d_k, head, heads, d_k_batch, d_k_head)
    d_v = of_head(d_v, head, heads, d_v_batch, d_v_head)
    alpha = tl.load(softness)
    rows = tl.arange(0, QUERIES)
    queries = load_rotated(q, q_token, cos, sin, rows, tokens, D, BD, ROPE, INTERPRETED)
    d_rows = load_rows(d_out, d_out_token, rows, tokens, D, BD)
    out_rows = load_rows(out, out_token, rows, tokens, D, BD)
    delta = tl.sum(d_rows.to(tl.float32) * out_rows.to(tl.float32), 1)
    # Rows beyond the end get the weight 2^-inf = 0.
    lse_rows = tl.load(lse + head * tokens + rows, mask=rows < tokens, other=float("inf"))

    d_queries = tl.zeros((QUERIES, BD), tl.float32)
    for start in range(0, tokens, KEYS):
        columns = start + tl.arange(0, KEYS)
        keys = load_rotated(k, k_token, cos, sin, columns, tokens, D, BD, ROPE, INTERPRETED)
        values = load_rows(v, v_token, columns, tokens, D, BD)
        zeros = tl.zeros((QUERIES, KEYS), tl.float32)
        weights = tl.exp2(dot(queries, tl.trans(keys), zeros, INTERPRETED) * scale_log2 - lse_rows[:, None])
        weights = tl.where(columns[None, :] < tokens, weights, 0.0)
        d_weights = dot(d_rows, tl.trans(values), zeros, INTERPRETED)
        d_weights = soften(d_weights, rows[:, None], columns[None, :], alpha, MODIFIED)
        d_scores = rounded(weights * (d_weights - delta[:, None]), keys.dtype, INTERPRETED)
        softened = rounded(soften(weights, rows[:, None], columns[None, :], alpha, MODIFIED), keys.dtype, INTERPRETED)
        nothing = tl.zeros((KEYS, BD), tl.float32)
        d_values = dot(tl.trans(softened), d_rows, nothing, INTERPRETED)
        d_keys = dot(tl.trans(d_scores), queries, nothing, INTERPRETED) * scale
        d_queries = dot(d_scores, keys, d_queries, INTERPRETED)
        if ROPE:
            d_keys = rotated(d_keys, cos, sin, columns, tokens, D, BD, True)
        store_rows(d_k, d_k_token, columns, tokens, d_keys, D, BD, INTERPRETED)
        store_rows(d_v, d_v_token, columns, tokens, d_values, D, BD, INTERPRETED)

    d_queries *= scale
    if ROPE:
        d_queries = rotated(d_queries, cos, sin, rows, tokens, D, BD, True)
    store_rows(d_q, d_q_token, rows, tokens, d_queries, D, BD, INTERPRETED)
