"""Times of the Triton kernels on a CUDA device, beside SDPA: `python benchmarks/gpu_kernels.py FILE [SHAPE ...]`.

For each shape (as 256x12x197x64: batch, heads, tokens, head width; SHAPES without any) every row of the tile table that
can serve it, and ALTERNATIVES to it; the rotation on its own; both doors of `triton_launch`, which take what the table
says. Each call is captured twenty times in a CUDA graph, so the host costs nothing; the median of nine replays is one
JSON line, written at once, with the relative L2 error against float32 on a few images. What a kernel has to fill holds
NaN before. `ILLAMA_WARM=1` compiles only, on two images.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
import triton
from torch.nn.attention import SDPBackend, sdpa_kernel

from illama.attention import soft_causal_attention_qkvpacked, triton_launch, triton_tiles
from illama.attention.request import Tables, rotate
from illama.attention.triton_tiles import Tiles
from illama.device.timers import CudaGraphs, CudaTimer
from illama.models.position import angles_1d

DEVICE, WARM = "cuda", "ILLAMA_WARM" in os.environ
SHAPES = [
    *("256x12x197x64", "256x3x197x64", "512x3x65x64", "64x12x577x64", "4x12x4097x64"),  # measured before
    *("512x3x50x64", "256x12x128x64", "256x12x256x64", "1x3x197x64", "128x3x197x64"),  # where the table turns
    *("256x12x197x32", "512x3x65x32", "256x6x197x80", "256x6x197x128", "512x3x65x128"),  # other widths
]
ALTERNATIVES = {  # beside the table's rows, half precision
    "head": [Tiles(64, 64, 4, 1), Tiles(64, 64, 4, 1, registers=168), Tiles(128, 64, 8, 1)],
    "row": [Tiles(64, 64, 4, 1), Tiles(64, 64, 4, 1, registers=168), Tiles(128, 64, 8, 1)],
    "online": [Tiles(64, 64, 4, 3, registers=168), Tiles(128, 64, 8, 3), Tiles(64, 128, 4, 2)],
    "fused": [Tiles(128, 16, 4, 1), Tiles(128, 16, 8, 1), Tiles(128, 32, 8, 1), Tiles(256, 32, 8, 2)],
    "queries": [Tiles(64, 64, 4, 2, registers=168), Tiles(64, 64, 4, 1), Tiles(128, 64, 8, 2)],
    "keys": [Tiles(64, 64, 4, 1), Tiles(32, 64, 4, 2, registers=168), Tiles(64, 128, 8, 2)],
}
LONGEST = {"head": 256, "row": 256}


def say(**row) -> None:
    print(json.dumps(row), flush=True)
    with open(sys.argv[1], "a") as file:
        file.write(json.dumps(row) + "\n")


def milliseconds(call: Callable[[], object], calls: int = 20, rounds: int = 9) -> float:
    """Median milliseconds per call of a replayed graph of `calls` calls."""
    device = torch.device(DEVICE)
    replay = CudaGraphs(device).capture(call, calls)
    return statistics.median(1e3 * CudaTimer(device).seconds(replay, 1) / calls for _ in range(rounds))


def time_one(
    name: str, shape: list[int], call: Callable[[], object], filled=(), truth=(), few=slice(0), **more
) -> None:
    """One line; `filled` holds NaN before the call, and its first images are compared with `truth`."""
    try:
        for tensor in filled:
            tensor.fill_(float("nan"))
        call()
        torch.cuda.synchronize()
        pairs = zip(filled, truth, strict=True)
        errors = [round(((a[few].float() - b).norm() / b.norm()).item(), 6) for a, b in pairs] if len(truth) else None
        say(kernel=name, shape=shape, ms=None if WARM else round(milliseconds(call), 5), error=errors, **more)
    except Exception as error:
        say(kernel=name, shape=shape, failed=repr(error)[:160], **more)


def candidates(way: str, tokens: int, head_dim: int) -> Iterator[tuple[str, Tiles]]:
    """Kernels of a pass that can serve a head, with their tiles: the table's, then the alternatives; each one once."""
    rows = triton_tiles.rows_of_table(way, head_dim, torch.bfloat16)
    found = [item for row in rows for item in row.kernels.items()]
    names = ("head", "row", "online") if way == "forward" else ("fused", "queries", "keys")
    found += [(name, tiles) for name in names for tiles in ALTERNATIVES[name]]
    for name, tiles in dict.fromkeys(sorted(found, key=lambda item: names.index(item[0]))):
        if tokens <= (tiles.queries if name == "fused" else LONGEST.get(name, tokens)):
            yield name, tiles


def study(batch: int, heads: int, tokens: int, head_dim: int, softness: float = 0.0) -> None:
    shape, scale = [batch, heads, tokens, head_dim], head_dim**-0.5
    qkv = torch.randn(batch, tokens, 3, heads, head_dim, device=DEVICE, dtype=torch.bfloat16)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    angles = angles_1d(tokens, head_dim)
    rope = (angles.cos().float().to(DEVICE), angles.sin().float().to(DEVICE))
    alpha = torch.tensor(softness, device=DEVICE)
    d_out = torch.randn(batch, tokens, heads, head_dim, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2)
    # Truth: the reference in float32 on a few images.
    few = slice(0, min(batch, 1 if tokens > 1024 else 2))
    exact = qkv[few].float().requires_grad_()
    true_out = soft_causal_attention_qkvpacked(exact, alpha, rope=rope, backend="reference")
    true_out.backward(d_out[few].float())
    true_out, true_d = true_out.detach(), exact.grad.permute(2, 0, 3, 1, 4)

    out = q.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)
    lse, delta = (torch.empty(batch, heads, tokens, device=DEVICE) for _ in range(2))
    d_q, d_k, d_v = torch.empty_like(qkv).permute(2, 0, 3, 1, 4)
    options = {"few": few, "alpha": softness}

    def forward(q=q, k=k, rope: Tables | None = rope) -> None:
        triton_launch.forward(q, k, v, alpha, rope, scale, False, out, lse)

    def backward() -> None:
        triton_launch.backward(d_out, q, k, v, alpha, rope, out, lse, scale, False, (d_q, d_k, d_v))

    time_one("door fwd", shape, forward, [out], [true_out], **options)
    time_one("door bwd", shape, backward, [d_q, d_k, d_v], true_d, **options)

    # One by one, the rotation inside and, where it could be, before.
    turned = triton_launch.rotated(q, k, rope)
    places = [("inside", (q, k), rope)] if tokens <= 1024 else []
    for place, (q_in, k_in), tables in [*places, ("before", turned, None)] if tokens > 256 else places:
        cos_sin = (alpha, alpha) if tables is None else tables
        numbers = {"forward": (heads, tokens, scale * math.log2(math.e))}
        numbers["backward"] = (heads, tokens, scale, scale * math.log2(math.e))
        arguments = {  # read with strides, plain, written with strides
            "forward": ((q_in, k_in, v, out), (lse,), ()),
            "fused": ((q_in, k_in, v, out, d_out), (lse,), (d_q, d_k, d_v)),
            "queries": ((q_in, k_in, v, out, d_out), (lse, delta), (d_q,)),
            "keys": ((q_in, k_in, v, d_out), (lse, delta), (d_k, d_v)),
        }
        truths = {"forward": [true_out], "fused": true_d, "queries": true_d[:1], "keys": true_d[1:]}
        for way, short in (("forward", "fwd"), ("backward", "bwd")):
            forward(*turned, None)  # the backward kernels read what it fills, and `keys` what `queries` fills
            for name, tiles in candidates(way, tokens, head_dim):
                which = "forward" if way == "forward" else name
                read, plain, written = arguments[which]
                grid = (triton_tiles.programs(name, batch * heads, tokens, tiles),)
                given = (*read, *plain, *written, alpha, *cos_sin, *triton_launch._strides(*read, *written))
                constants = triton_launch.constants(name, tokens, head_dim, tables, False, tiles)

                def call(name=name, grid=grid, given=given, numbers=numbers[way], constants=constants) -> None:
                    triton_launch.KERNELS[name][grid](*given, *numbers, **constants)

                # Gradients of rotated q and k are not those of q and k: no error there.
                truth = truths[which] if tables is not None or way == "forward" else ()
                filled = written or [out]
                time_one(f"{short} {name}", shape, call, filled, truth, tiles=str(tiles), rotation=place, **options)

    with torch.no_grad():
        eager = rotate(q, rope), rotate(k, rope)
        time_one("rotate q and k, eager", shape, lambda: (rotate(q, rope), rotate(k, rope)))
        time_one(
            "rotate q and k", shape, lambda: triton_launch.rotate_into(q, k, *turned, rope),
            turned, [t[few].float() for t in eager], few=few,
        )  # fmt: skip
        time_one("rotate back in place", shape, lambda: triton_launch.rotate_into(d_q, d_k, d_q, d_k, rope, back=True))
        time_one("copy of q, k, v, out (4 BhNd read, 4 written)", shape, lambda: (qkv.clone(), out.clone()))
    time_sdpa(shape, (q, k, v), d_out)


def time_sdpa(shape: list[int], qkv: tuple[torch.Tensor, ...], d_out: torch.Tensor) -> None:
    """A yardstick: fused attention without rotation and without our mask."""
    inputs = [t.detach().clone().requires_grad_() for t in qkv]
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        for causal in (False, True):

            def attend(causal=causal) -> torch.Tensor:
                return F.scaled_dot_product_attention(*inputs, is_causal=causal)

            def both(attend=attend) -> object:
                return torch.autograd.grad(attend(), inputs, d_out)

            with sdpa_kernel(backend):
                with torch.no_grad():
                    time_one(f"sdpa {backend.name} causal={causal} fwd", shape, attend)
                time_one(f"sdpa {backend.name} causal={causal} fwd+bwd", shape, both)


def time_machine() -> None:
    properties = torch.cuda.get_device_properties(0)
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    say(device=properties.name, sms=properties.multi_processor_count, **versions)
    square = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    large, to = (torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    product, copy = milliseconds(lambda: square @ square, 3), milliseconds(lambda: to.copy_(large), 3)
    say(matmul_tflops=round(2 * 8192**3 / product / 1e9, 1), copy_TBs=round(2 * large.numel() / copy / 1e9, 3))


if __name__ == "__main__":
    if not WARM:
        time_machine()
    for text in sys.argv[2:] or SHAPES:
        batch, *others = map(int, text.split("x"))
        study(min(batch, 2) if WARM else batch, *others)
        torch.cuda.empty_cache()
    if not WARM and not sys.argv[2:]:
        study(256, 12, 197, 64, softness=0.5)
