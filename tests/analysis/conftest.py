"""An untrained run, and how much memory the analyses believe to have."""

from __future__ import annotations

import pytest

from illama.analysis import capture
from tests.evaluation.conftest import digits_run

__all__ = ["digits_run", "one_by_one"]


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for no more than one image."""
    monkeypatch.setattr(capture, "MOST_VALUES", 1)
