"""Two candidate kernels for N <= 256, measured by `gpu_kernels.py`; what they gave stands in docs/kernels.md."""

import triton
import triton.language as tl

from illama.attention.triton_kernels import (
    _dot,
    _load_rotated,
    _load_rows,
    _of_head,
    _rotated,
    _rounded,
    _soften,
    _store_rows,
)


@triton.jit
def forward_head_kernel(
    q,
    k,
    v,
    out,
    lse,
    softness,
    cos,
    sin,
    q_batch,
    q_head,
    q_token,
    k_batch,
    k_head,
    k_token,
    v_batch,
    v_head,
    v_token,
    out_batch,
    out_head,
    out_token,
    heads,
    tokens,
    scale_log2,
    D: tl.constexpr,
    BD: tl.constexpr,
    ROPE: tl.constexpr,
    MODIFIED: tl.constexpr,
    INTERPRETED: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    TILES: tl.constexpr,
    LAST: tl.constexpr,
):
    """one program per head: K (rotated once) and V stay in shared memory, query tiles walk over them"""
    head = tl.program_id(0)
    q = _of_head(q, head, heads, q_batch, q_head)
    k = _of_head(k, head, heads, k_batch, k_head)
    v = _of_head(v, head, heads, v_batch, v_head)
    out = _of_head(out, head, heads, out_batch, out_head)
    alpha = tl.load(softness)
    ks = ()
    vs = ()
    for tile in tl.static_range(TILES):
        columns = tile * KEYS + tl.arange(0, KEYS if tile < TILES - 1 else LAST)
        ks += (_load_rotated(k, k_token, cos, sin, columns, tokens, D, BD, ROPE, INTERPRETED),)
        vs += (_load_rows(v, v_token, columns, tokens, D, BD),)
    for start in range(0, tokens, QUERIES):
        rows = start + tl.arange(0, QUERIES)
        queries = _load_rotated(q, q_token, cos, sin, rows, tokens, D, BD, ROPE, INTERPRETED)
        scores = ()
        top = tl.full((QUERIES,), float("-inf"), tl.float32)
        for tile in tl.static_range(TILES):
            columns = tile * KEYS + tl.arange(0, KEYS if tile < TILES - 1 else LAST)
            zeros = tl.zeros((QUERIES, KEYS if tile < TILES - 1 else LAST), tl.float32)
            score = _dot(queries, tl.trans(ks[tile]), zeros, INTERPRETED)
            if tile == TILES - 1:
                score = tl.where(columns[None, :] < tokens, score, float("-inf"))
            top = tl.maximum(top, tl.max(score, 1))
            scores += (score,)
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
                weights = _soften(weights, rows[:, None], columns[None, :], alpha, MODIFIED)
                attended = _dot(_rounded(weights, vs[tile].dtype, INTERPRETED), vs[tile], attended, INTERPRETED)
        _store_rows(out, out_token, rows, tokens, attended / total[:, None], D, BD, INTERPRETED)
        tl.store(lse + head * tokens + rows, top * scale_log2 + tl.log2(total), mask=rows < tokens)


@triton.jit
def backward_head_kernel(
    q,
    k,
    v,
    out,
    d_out,
    lse,
    d_q,
    d_k,
    d_v,
    softness,
    cos,
    sin,
    q_batch,
    q_head,
    q_token,
    k_batch,
    k_head,
    k_token,
    v_batch,
    v_head,
    v_token,
    out_batch,
    out_head,
    out_token,
    d_out_batch,
    d_out_head,
    d_out_token,
    d_q_batch,
    d_q_head,
    d_q_token,
    d_k_batch,
    d_k_head,
    d_k_token,
    d_v_batch,
    d_v_head,
    d_v_token,
    heads,
    tokens,
    scale,
    scale_log2,
    D: tl.constexpr,
    BD: tl.constexpr,
    ROPE: tl.constexpr,
    MODIFIED: tl.constexpr,
    INTERPRETED: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """one program per head, N <= 256: all queries' dq in registers, keys walk by; five products"""
    head = tl.program_id(0)
    q = _of_head(q, head, heads, q_batch, q_head)
    k = _of_head(k, head, heads, k_batch, k_head)
    v = _of_head(v, head, heads, v_batch, v_head)
    out = _of_head(out, head, heads, out_batch, out_head)
    d_out = _of_head(d_out, head, heads, d_out_batch, d_out_head)
    d_q = _of_head(d_q, head, heads, d_q_batch, d_q_head)
    d_k = _of_head(d_k, head, heads, d_k_batch, d_k_head)
    d_v = _of_head(d_v, head, heads, d_v_batch, d_v_head)
    alpha = tl.load(softness)
    rows = tl.arange(0, QUERIES)
    queries = _load_rotated(q, q_token, cos, sin, rows, tokens, D, BD, ROPE, INTERPRETED)
    d_rows = _load_rows(d_out, d_out_token, rows, tokens, D, BD)
    out_rows = _load_rows(out, out_token, rows, tokens, D, BD)
    delta = tl.sum(d_rows.to(tl.float32) * out_rows.to(tl.float32), 1)
    lse_rows = tl.load(lse + head * tokens + rows, mask=rows < tokens, other=float("inf"))
    d_queries = tl.zeros((QUERIES, BD), tl.float32)
    for start in range(0, tokens, KEYS):
        columns = start + tl.arange(0, KEYS)
        keys = _load_rotated(k, k_token, cos, sin, columns, tokens, D, BD, ROPE, INTERPRETED)
        values = _load_rows(v, v_token, columns, tokens, D, BD)
        zeros = tl.zeros((QUERIES, KEYS), tl.float32)
        weights = tl.exp2(_dot(queries, tl.trans(keys), zeros, INTERPRETED) * scale_log2 - lse_rows[:, None])
        weights = tl.where(columns[None, :] < tokens, weights, 0.0)
        d_weights = _dot(d_rows, tl.trans(values), zeros, INTERPRETED)
        d_weights = _soften(d_weights, rows[:, None], columns[None, :], alpha, MODIFIED)
        d_scores = _rounded(weights * (d_weights - delta[:, None]), keys.dtype, INTERPRETED)
        softened = _rounded(_soften(weights, rows[:, None], columns[None, :], alpha, MODIFIED), keys.dtype, INTERPRETED)
        d_values = _dot(tl.trans(softened), d_rows, tl.zeros((KEYS, BD), tl.float32), INTERPRETED)
        d_keys = _dot(tl.trans(d_scores), queries, tl.zeros((KEYS, BD), tl.float32), INTERPRETED)
        d_queries = _dot(d_scores, keys, d_queries, INTERPRETED)
        d_keys *= scale
        if ROPE:
            d_keys = _rotated(d_keys, cos, sin, columns, tokens, D, BD, True)
        _store_rows(d_k, d_k_token, columns, tokens, d_keys, D, BD, INTERPRETED)
        _store_rows(d_v, d_v_token, columns, tokens, d_values, D, BD, INTERPRETED)
    d_queries *= scale
    if ROPE:
        d_queries = _rotated(d_queries, cos, sin, rows, tokens, D, BD, True)
    _store_rows(d_q, d_q_token, rows, tokens, d_queries, D, BD, INTERPRETED)
