"""The Triton kernels compile for Hopper with the tile table's choices; no GPU needed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs triton (make test-kernels)")

from triton import compile, knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from illama.attention import triton_kernels, triton_launch

pytestmark = pytest.mark.skipif(triton_launch.INTERPRETED, reason="TRITON_INTERPRET=1 replaces what is compiled here")

TOKENS = 197
HOPPER = GPUTarget("cuda", 90, 32)
SHARED_MEMORY = 227 * 1024  # bytes that one program may have on Hopper
SPILLED = 128  # bytes per thread
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
KERNELS = {
    "row": triton_kernels.forward_row_kernel,
    "online": triton_kernels.forward_online_kernel,
    "queries": triton_kernels.backward_queries_kernel,
    "keys": triton_kernels.backward_keys_kernel,
}


def signature_and_alignment(kernel, dtype: torch.dtype, constants: dict) -> tuple[dict, dict]:
    """Types of the arguments by name; pointers and strides are multiples of 16, as in a model."""
    types, aligned = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name] = "constexpr"
        elif name.startswith("scale"):
            types[name] = "fp32"
        elif name in ("lse", "delta", "softness", "cos", "sin"):
            types[name] = "*fp32"
        else:
            types[name] = POINTERS[dtype] if re.fullmatch("(d_)?(q|k|v|out)", name) else "i32"
        if types[name] != "constexpr" and name not in ("heads", "tokens", "scale", "scale_log2"):
            aligned[(position,)] = [["tt.divisibility", 16]]
    return types, aligned


def bytes_on_the_stack(cubin: bytes, folder: Path) -> int:
    (folder / "kernel.cubin").write_bytes(cubin)
    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(folder / "kernel.cubin")]
    found = re.search(r"STACK:(\d+)", subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found is not None
    return int(found[1])


def cases() -> list[tuple[str, torch.dtype, int, bool]]:
    """Every kernel that a dtype uses, at each width; the masks differ in one comparison, so one case shows that."""
    widths = [(torch.bfloat16, 64), (torch.bfloat16, 80), (torch.bfloat16, 128), (torch.float16, 64)]
    found = [(name, dtype, head_dim, False) for dtype, head_dim in widths for name in KERNELS]
    found += [(name, torch.bfloat16, 64, True) for name in KERNELS]
    assert triton_launch.forward_kernel(TOKENS, torch.float32) == "online"
    found += [(name, torch.float32, head_dim, False) for head_dim in (64, 128) for name in KERNELS if name != "row"]
    return found


@pytest.mark.parametrize(("name", "dtype", "head_dim", "modified"), cases())
def test_compiles_for_hopper(name, dtype, head_dim, modified, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path / "cache"))
    tiles = triton_launch.tiles_for(name, head_dim, dtype)
    table = torch.empty(TOKENS, head_dim // 2)
    rope = (table, table) if triton_launch.rotates_inside(TOKENS, dtype) else None
    constants = triton_launch.constants(head_dim, rope, modified, tiles)
    options = {key: constants.pop(key) for key in ("num_warps", "num_stages", "maxnreg") if key in constants}
    if name == "row":
        constants |= triton_launch.row_plan(TOKENS, tiles)
    types, aligned = signature_and_alignment(KERNELS[name], dtype, constants)
    source = ASTSource(fn=KERNELS[name], signature=types, constexprs=constants, attrs=aligned)
    compiled = compile(source, target=HOPPER, options=options)
    assert ".target sm_90a" in compiled.asm["ptx"]
    assert ("wgmma.mma_async" in compiled.asm["ptx"]) == (dtype != torch.float32)
    assert compiled.metadata.shared <= SHARED_MEMORY
    assert bytes_on_the_stack(compiled.asm["cubin"], tmp_path) <= SPILLED
