"""Shared by all tests: one thread per worker, and where the large optional data lies."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from illama import native
from illama.attention import triton
from illama.device import linear
from tests.pictures import DRAW, draw_blank

ON_GPU = torch.cuda.is_available() and not triton._INTERPRETED
torch.set_num_threads(1)  # the suite runs one worker per core

GOLDEN = Path(__file__).parent / "golden" / "data"
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a device that is not there: the one place that looks."""
    for item in items:
        if item.get_closest_marker("gpu") and not ON_GPU:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device (make test-gpu)"))
        if item.get_closest_marker("kernels") and not (triton._INSTALLED and (ON_GPU or triton._INTERPRETED)):
            reason = "needs triton and a CUDA device (make test-gpu) or TRITON_INTERPRET=1 (make test-kernels)"
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: no collection of garbage, of which some tests ask for many, looks at them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with the numbers of the authors' implementation."""
    return GOLDEN


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the large optional image sets; a test that needs it is skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"optional data folder {SHARED / 'data'} is absent")
    return SHARED / "data"


@pytest.fixture(autouse=True)
def _what_computes_on_the_cpu_is_nobodys_but_the_tests() -> Iterator[None]:
    """A continued run keeps the kernels that it began with, for the whole process."""
    kept, chosen = list(native._kept), dict(linear._chosen)
    yield
    native._kept[:] = kept
    linear._chosen.clear()
    linear._chosen.update(chosen)


@pytest.fixture(autouse=True, scope="session")
def _blank_pngs() -> None:
    Figure.savefig = draw_blank


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """PNGs are drawn."""
    monkeypatch.setattr(Figure, "savefig", DRAW)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures on their way to the disk."""
    figures: list[Figure] = []
    save = Figure.savefig

    def noted(self: Figure, *args: Any, **how: Any) -> None:
        figures.append(self)
        save(self, *args, **how)

    monkeypatch.setattr(Figure, "savefig", noted)
    return figures
