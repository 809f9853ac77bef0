"""Times of the Triton kernels on a CUDA device, beside SDPA: `python benchmarks/gpu_kernels.py FILE`.

Each call is captured twenty times in a CUDA graph, so the host costs nothing; the median of nine replays is one JSON
line, written at once, with the relative L2 error against float32 on a few images. The candidates of
`gpu_candidates.py` take part.
"""

import json
import math
import statistics
import sys

import gpu_candidates as V
import torch
import torch.nn.functional as F
import triton
from torch.nn.attention import SDPBackend, sdpa_kernel

from illama.attention import soft_causal_attention_qkvpacked
from illama.attention import triton_kernels as K
from illama.attention import triton_launch as L
from illama.attention.rotary import rotate
from illama.models.rope import angles_1d
from illama.timers import CudaGraphs, CudaTimer

FILE, DEV, LOG2E = sys.argv[1], torch.device("cuda"), math.log2(math.e)
T = L.Tiles


def say(**row):
    print(json.dumps(row), flush=True)
    with open(FILE, "a") as f:
        f.write(json.dumps(row) + "\n")


def ms(fn, reps=20, rounds=9):
    """Median ms per call of a replayed graph of `reps` calls."""
    replay = CudaGraphs(DEV).capture(fn, reps)
    return statistics.median(1e3 * CudaTimer(DEV).seconds(replay, 1) / reps for _ in range(rounds))


POISON = []  # what a kernel has to fill


def attempt(name, shape, check, fn, **more):
    try:
        for t in POISON if check else ():
            t.fill_(float("nan"))
        fn()
        torch.cuda.synchronize()
        error = check() if check else None
        say(kernel=name, shape=shape, ms=round(ms(fn), 5), error=error, **more)
    except Exception as e:
        say(kernel=name, shape=shape, failed=repr(e)[:160], **more)


def rel(a, b):
    return round(((a.float() - b.float()).norm() / b.float().norm()).item(), 6)


def study(B, h, N, d=64, alpha=0.0):
    shape = [B, h, N, d]
    qkv = torch.randn(B, N, 3, h, d, device=DEV, dtype=torch.bfloat16)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    ang = angles_1d(N, d)
    rope = (ang.cos().float().to(DEV), ang.sin().float().to(DEV))
    soft = torch.tensor(alpha, device=DEV)
    scale = d**-0.5
    do = torch.randn(B, N, h, d, device=DEV, dtype=torch.bfloat16).transpose(1, 2)
    # truth: the reference in float32 on a few images
    few = slice(0, min(B, 1 if N > 1024 else 2))
    x = qkv[few].float().requires_grad_()
    o = soft_causal_attention_qkvpacked(x, soft, rope=rope, backend="reference")
    o.backward(do[few].float())
    t_out, t_d = o.detach(), x.grad.permute(2, 0, 3, 1, 4)
    inside = N <= 1024
    r = rope if inside else None
    out = q.new_empty(B, N, h, d).transpose(1, 2)
    lse = torch.empty(B, h, N, device=DEV)
    dqkv = torch.empty_like(qkv)
    dq, dk, dv = dqkv.permute(2, 0, 3, 1, 4)
    delta = torch.empty_like(lse)
    if not inside:
        q, k = rotate(q, rope), rotate(k, rope)
    tab = r if r else (soft, soft)

    def fwd(kernel, tiles, plan, one=False, **extra):
        grid = B * h if one else B * h * triton.cdiv(N, tiles.queries)
        c = L.constants(d, r, False, tiles) | (L.row_plan(N, tiles) if plan else {}) | extra
        return lambda: kernel[(grid,)](
            q, k, v, out, lse, soft, *tab, *L._strides(q, k, v, out), h, N, scale * LOG2E, **c
        )

    POISON[:] = [out]

    def ok():
        return rel(out[few], t_out)

    for name, kernel, plan, one in (
        ("row", K.forward_row_kernel, True, False),
        ("head", V.forward_head_kernel, True, True),
        ("online", K.forward_online_kernel, False, False),
    ):
        if N > 256 and plan:
            continue
        for tiles, extra in (
            (T(128, 64, 8, 1), {}),
            (T(64, 64, 4, 1), {}),
            (T(64, 64, 4, 1), {"maxnreg": 168}),
            (T(128, 64, 8, 3), {}),
            (T(64, 64, 4, 3), {"maxnreg": 168}),
            (T(64, 128, 4, 2), {}),
        ):
            if (name != "online") == (tiles.stages > 1):
                continue
            attempt(
                f"fwd {name}",
                shape,
                ok,
                fwd(kernel, tiles, plan, one, **extra),
                tiles=str(tiles),
                extra=extra,
                alpha=alpha,
            )

    best = (
        fwd(K.forward_row_kernel, T(128, 64, 8, 1), True)
        if N <= 256
        else fwd(K.forward_online_kernel, T(128, 64, 8, 3), False)
    )
    best()
    POISON[:] = []
    num = (h, N, scale, scale * LOG2E)

    def queries(tiles, **extra):
        c = L.constants(d, r, False, tiles) | extra
        return lambda: K.backward_queries_kernel[(B * h * triton.cdiv(N, tiles.queries),)](
            q, k, v, out, do, lse, delta, dq, soft, *tab, *L._strides(q, k, v, out, do, dq), *num, **c
        )

    def keys(tiles, **extra):
        c = L.constants(d, r, False, tiles) | extra
        return lambda: K.backward_keys_kernel[(B * h * triton.cdiv(N, tiles.keys),)](
            q, k, v, do, lse, delta, dk, dv, soft, *tab, *L._strides(q, k, v, do, dk, dv), *num, **c
        )

    def fused(tiles, **extra):
        c = L.constants(d, r, False, tiles) | extra
        return lambda: V.backward_head_kernel[(B * h,)](
            q, k, v, out, do, lse, dq, dk, dv, soft, *tab, *L._strides(q, k, v, out, do, dq, dk, dv), *num, **c
        )

    def grads(which):
        return lambda: rel((dq, dk, dv)[which][few], t_d[which]) if inside else None

    POISON[:] = [dq]
    for tiles, extra in (
        (T(128, 64, 8, 2), {}),
        (T(64, 64, 4, 2), {}),
        (T(64, 64, 4, 2), {"maxnreg": 168}),
        (T(64, 64, 4, 1), {}),
    ):
        attempt("bwd queries", shape, grads(0), queries(tiles, **extra), tiles=str(tiles), extra=extra, alpha=alpha)
    POISON[:] = [dk, dv]
    for tiles, extra in (
        (T(64, 128, 8, 2), {}),
        (T(64, 64, 4, 2), {}),
        (T(64, 64, 4, 1), {}),
        (T(32, 64, 4, 2), {"maxnreg": 168}),
    ):
        attempt("bwd keys", shape, grads(1), keys(tiles, **extra), tiles=str(tiles), extra=extra, alpha=alpha)
    POISON[:] = [dqkv]
    if N <= 256:
        rows = max(128, triton.next_power_of_2(N))
        for tiles in (T(rows, 32, 8, 2), T(rows, 16, 8, 1), T(rows, 32, 8, 1), T(rows, 16, 4, 1)):
            attempt(
                "bwd fused",
                shape,
                lambda: [rel(t[few], w) for t, w in zip((dq, dk, dv), t_d, strict=True)],
                fused(tiles),
                tiles=str(tiles),
                alpha=alpha,
            )
    # yardsticks: fused attention without rotation and without our mask; what rotation costs apart
    qs, ks, vs = (t.detach().clone().requires_grad_() for t in (q, k, v))
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        for causal in (False, True):

            def sd(causal=causal):
                return F.scaled_dot_product_attention(qs, ks, vs, is_causal=causal)

            with sdpa_kernel(backend):
                with torch.no_grad():
                    attempt(f"sdpa {backend.name} causal={causal} fwd", shape, None, sd)
                attempt(
                    f"sdpa {backend.name} causal={causal} fwd+bwd",
                    shape,
                    None,
                    lambda: torch.autograd.grad(sd(), (qs, ks, vs), do),
                )
    with torch.no_grad():
        attempt("rotate q and k, eager", shape, None, lambda: (rotate(q, rope), rotate(k, rope)))
        attempt("copy of q, k, v, out (4 BhNd read, 4 written)", shape, None, lambda: (qkv.clone(), out.clone()))


SHAPES = ((256, 12, 197), (256, 3, 197), (512, 3, 65), (64, 12, 577), (4, 12, 4097))

if __name__ == "__main__":
    if len(sys.argv) > 2:  # fills the compile cache: one shape, two images
        study(2, *SHAPES[int(sys.argv[2])][1:])
        sys.exit()
    p = torch.cuda.get_device_properties(0)
    say(device=p.name, sms=p.multi_processor_count, torch=torch.__version__, triton=triton.__version__)
    a = torch.randn(8192, 8192, device=DEV, dtype=torch.bfloat16)
    big = torch.empty(1 << 30, dtype=torch.uint8, device=DEV)
    to = torch.empty_like(big)
    say(
        matmul_tflops=round(2 * 8192**3 / ms(lambda: torch.mm(a, a), 3) / 1e9, 1),
        copy_TBs=round(2 * big.numel() / ms(lambda: to.copy_(big), 3) / 1e9, 3),
    )
    del a, big, to
    for args in SHAPES:
        study(*args)
        torch.cuda.empty_cache()
    study(256, 12, 197, alpha=0.5)
