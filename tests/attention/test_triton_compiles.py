"""The Triton kernels compile for Hopper with the tile table's choices, and into what; no GPU needed."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs triton (make test-kernels)")

from illama.attention import triton_launch
from illama.attention.triton_tiles import ANY
from tests.attention.compiled import Case, compile_for_hopper, table_cases

pytestmark = pytest.mark.skipif(triton_launch.INTERPRETED, reason="TRITON_INTERPRET=1 replaces what is compiled here")

HALF, FLOAT32 = (torch.bfloat16, torch.float16), (torch.float32,)
# By kernel, padded width and longest heads of the table's row: registers and bytes spilled per thread and KB of shared
# memory, at most, and programs per multiprocessor, at least. The larger of what Triton 3.6.0 and 3.7.1 need; a version
# may take eight registers more where that costs no program.
ALLOWED = {
    HALF: {
        ("head", 32, 128): (168, 0, 20, 3),
        ("head", 32, 208): (168, 0, 30, 3),
        ("head", 32, 256): (254, 0, 36, 2),
        ("row", 32, 256): (206, 0, 8, 1),
        ("online", 32, ANY): (134, 0, 48, 1),
        ("fused", 32, 64): (88, 0, 17, 5),
        ("fused", 32, 128): (134, 0, 33, 3),
        ("queries", 32, ANY): (166, 0, 40, 1),
        ("keys", 32, ANY): (254, 0, 41, 1),
        ("rotate", 32, ANY): (56, 0, 0, 9),
        ("head", 64, 128): (168, 0, 40, 3),
        ("head", 64, 208): (168, 0, 60, 3),
        ("head", 64, 256): (255, 0, 72, 2),
        ("row", 64, 128): (156, 0, 8, 3),
        ("row", 64, 256): (168, 128, 8, 3),
        ("online", 64, ANY): (168, 0, 88, 2),
        ("fused", 64, 64): (168, 0, 30, 3),
        ("fused", 64, 128): (255, 0, 58, 2),
        ("queries", 64, ANY): (168, 0, 64, 3),
        ("keys", 64, ANY): (251, 0, 32, 2),
        ("rotate", 64, ANY): (56, 0, 0, 9),
        ("head", 128, 128): (245, 0, 72, 2),
        ("head", 128, 208): (255, 0, 112, 2),
        ("row", 128, 256): (252, 0, 32, 1),
        ("online", 128, ANY): (240, 0, 128, 1),
        ("queries", 128, ANY): (255, 0, 160, 1),
        ("keys", 128, ANY): (255, 96, 129, 1),
        ("rotate", 128, ANY): (56, 0, 0, 9),
    },
    FLOAT32: {
        ("online", 64, ANY): (90, 0, 41, 2),
        ("queries", 64, ANY): (92, 0, 56, 2),
        ("keys", 64, ANY): (98, 0, 57, 2),
        ("rotate", 64, ANY): (83, 0, 4, 5),
        ("online", 128, ANY): (72, 0, 26, 7),
        ("queries", 128, ANY): (158, 0, 68, 3),
        ("keys", 128, ANY): (110, 0, 34, 4),
        ("rotate", 128, ANY): (83, 0, 4, 5),
    },
}


SPILLED_UNDER_THE_MODIFIED_MASK = 40  # bytes more, in the head kernel of at most 208 keys


def cases() -> list[Case]:
    """Every row of the table at widths 32, 64 and 128; some at width 80, in float16 and under the modified mask."""
    found = [case for head_dim in (32, 64, 128) for case in table_cases(torch.bfloat16, head_dim)]
    found += [case for head_dim in (64, 128) for case in table_cases(torch.float32, head_dim)]
    some = [("head", 208), ("fused", 128)]
    found += [case for case in table_cases(torch.bfloat16, 80) if (case.kernel, case.longest) in some]
    for dtype, modified in ((torch.float16, False), (torch.bfloat16, True)):
        others = table_cases(dtype, 64, modified)
        found += [case for case in others if (case.kernel, case.longest) in [*some, ("online", ANY)]]
    return found


@pytest.mark.parametrize("case", cases(), ids=str)
def test_compiles_for_hopper(case, tmp_path, monkeypatch) -> None:
    from triton import knobs

    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path))
    found = compile_for_hopper(case)
    assert ".target sm_90a" in found.ptx
    assert ("wgmma.mma_async" in found.ptx) == (case.dtype != torch.float32 and case.kernel != "rotate")
    registers, spilled, shared_kb, programs = next(
        rows[case.kernel, triton_launch.padded(case.head_dim), case.longest]
        for dtypes, rows in ALLOWED.items()
        if case.dtype in dtypes
    )
    assert found.registers <= registers + 8
    assert found.spilled <= spilled + case.modified * SPILLED_UNDER_THE_MODIFIED_MASK
    assert found.shared <= shared_kb * 1024
    assert found.programs >= programs


def test_every_row_has_its_bounds() -> None:
    """Neither a row of the table without bounds nor bounds without a row."""
    for dtypes, rows in ALLOWED.items():
        listed = {
            (case.kernel, triton_launch.padded(case.head_dim), case.longest) for case in cases() if case.dtype in dtypes
        }
        assert listed == rows.keys()
