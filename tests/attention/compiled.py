"""What Triton's compiler makes of the tile table for Hopper (sm_90a); no GPU needed.

`python -m tests.attention.compiled` prints it as the table of docs/kernels.md.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from illama.attention import triton_launch, triton_tiles
from illama.attention.triton_tiles import Tiles

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
LONG = 577  # tokens that stand for any number


@dataclass(frozen=True)
class Case:
    """A kernel as the tile table has it, for heads of `tokens` tokens; the table's row ends at `longest`."""

    kernel: str
    head_dim: int
    tokens: int
    longest: int
    dtype: torch.dtype
    tiles: Tiles | None  # the rotation has none
    modified: bool = False

    def __str__(self) -> str:
        return f"{self.kernel}-{self.head_dim}-{self.tokens}-{str(self.dtype).removeprefix('torch.')}" + (
            "-modified" if self.modified else ""
        )


@dataclass(frozen=True)
class Compiled:
    """Registers and bytes spilled per thread, bytes of shared memory and warps per program, and the code."""

    registers: int
    spilled: int
    shared: int
    warps: int
    ptx: str

    @property
    def programs(self) -> int:
        """Programs that share a multiprocessor of Hopper: 65536 registers, 228 KB shared memory, 64 warps.

        A warp gets registers in units of 256, a program 1 KB of shared memory more than it asks for.
        """
        registers_of_warp = -(-32 * self.registers // 256) * 256
        return min(65536 // registers_of_warp // self.warps, 228 * 1024 // (self.shared + 1024), 64 // self.warps)


def table_cases(dtype: torch.dtype, head_dim: int, modified: bool = False) -> Iterator[Case]:
    """Every kernel of every row of the tile table, at the most tokens that it serves; and the rotation on its own."""
    for direction in ("forward", "backward"):
        for row in triton_tiles.rows_of_table(direction, head_dim, dtype):
            for kernel, tiles in row.kernels.items():
                yield Case(kernel, head_dim, min(row.tokens, LONG), row.tokens, dtype, tiles, modified)
    yield Case("rotate", head_dim, LONG, triton_tiles.ANY, dtype, None)


def compile_for_hopper(case: Case) -> Compiled:
    kernel = triton_launch.KERNELS[case.kernel]
    if case.tiles is None:
        constants = triton_launch.rotation_constants(case.head_dim, back=False)
    else:
        table = torch.empty(case.tokens, case.head_dim // 2)
        rope = (table, table) if triton_tiles.rotates_inside(case.tokens, case.dtype) else None
        constants = triton_launch.constants(case.kernel, case.tokens, case.head_dim, rope, case.modified, case.tiles)
    options = {key: constants.pop(key) for key in ("num_warps", "num_stages", "maxnreg") if key in constants}
    types, aligned = _signature_and_alignment(kernel, case.dtype, constants)
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=HOPPER, options=options)
    registers, spilled = _registers_and_stack(compiled.asm["cubin"])
    return Compiled(registers, spilled, compiled.metadata.shared, options["num_warps"], compiled.asm["ptx"])


def _signature_and_alignment(kernel, dtype: torch.dtype, constants: dict) -> tuple[dict, dict]:
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
            types[name] = POINTERS[dtype] if re.fullmatch("(d_)?(q|k|v|out)(_turned)?", name) else "i32"
        if types[name] != "constexpr" and name not in ("heads", "tokens", "scale", "scale_log2"):
            aligned[(position,)] = [["tt.divisibility", 16]]
    return types, aligned


def _registers_and_stack(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes on the stack, where spilled registers go, per thread."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", printed)
    assert found is not None, printed
    return int(found[1]), int(found[2])


def print_table() -> None:
    columns = [(torch.bfloat16, 32), (torch.bfloat16, 64), (torch.bfloat16, 80), (torch.bfloat16, 128)]
    columns += [(torch.float32, 64), (torch.float32, 128)]
    cells: dict[tuple[str, int], dict] = {}
    for column in columns:
        for case in table_cases(*column):
            found = compile_for_hopper(case)
            numbers = (found.registers, found.spilled, -(-found.shared // 1024), found.programs)
            cells.setdefault((case.kernel, case.longest), {})[column] = " / ".join(map(str, numbers))
    print(
        f"Triton {triton.__version__}, sm_90a: registers and bytes spilled per thread, KB of shared memory per program,"
    )
    print("programs per multiprocessor\n")
    print_row("kernel, N up to", [f"{str(dtype).removeprefix('torch.')}, {d}" for dtype, d in columns])
    print("|---" * (1 + len(columns)) + "|")
    for kernel, longest in sorted(cells, key=lambda key: (list(triton_launch.KERNELS).index(key[0]), key[1])):
        name = kernel if longest == triton_tiles.ANY else f"{kernel}, {longest}"
        print_row(name, [cells[kernel, longest].get(column, "") for column in columns])


def print_row(first: str, others: list[str]) -> None:
    print("| " + " | ".join([first, *others]) + " |")


if __name__ == "__main__":
    print_table()
