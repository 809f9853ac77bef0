"""What needs a CUDA device carries the marker by which `make test-gpu` finds it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LOOKS = re.compile(r"cuda\.(?:is_available|device_count)|\bON_GPU\b|skip(?:if)?\([^()]*\bcuda\b", re.IGNORECASE)
MARKED = re.compile(r"\bmark\.(?:gpu|kernels)\b")


def unmarked(text: str) -> bool:
    """Whether a test module decides by itself what happens without CUDA, and marks nothing."""
    return LOOKS.search(text) is not None and MARKED.search(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("@pytest.mark.skipif(not torch.cuda.is_available(), reason='x')", True),
        ("@pytest.mark.skipif(not HERE, reason='needs CUDA')", True),
        ("pytest.skip('no CUDA')", True),
        ("if ON_GPU: pass", True),
        ("if ON_GPU: pass\n@pytest.mark.kernels", False),
        ("@pytest.mark.gpu\ndef test(): torch.cuda.is_available()", False),
        ("device='cuda:99'", False),
    ],
)
def test_modules_are_told_apart(text: str, expected: bool) -> None:
    assert unmarked(text) == expected


def test_every_module_that_skips_without_cuda_has_the_marker() -> None:
    """conftest.py skips what is marked; a module that does so itself is not run by `make test-gpu`."""
    files = [file for file in HERE.rglob("test_*.py") if file != Path(__file__)]
    assert [file.relative_to(HERE).as_posix() for file in files if unmarked(file.read_text("utf-8"))] == []
    marked = {file.parent.name for file in files if MARKED.search(file.read_text("utf-8"))}
    assert {"attention", "bench", "data", "training"} <= marked
