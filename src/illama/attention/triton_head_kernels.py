# mypy: allow-untyped-defs
"""Triton kernels that give a whole head to one program: for short heads, of which there are many.

Mathematics, letters and conventions are those of `triton_kernels.py`. What a program shares with its neighbours there,
it keeps here: keys and values are read, and keys rotated, once per head.
"""

from __future__ import annotations

import triton
import triton.language as tl

from illama.attention.triton_parts import dot, load_rotated, load_rows, of_head, rotated, rounded, soften, store_rows


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
