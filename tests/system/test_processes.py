"""The allocator's thresholds: set on glibc, left alone where the user has set them."""

from __future__ import annotations

import ctypes
import os
import sys

import pytest

from illama.system.processes import keep_freed_memory

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")


class Library:
    def __init__(self) -> None:
        self.calls: dict[int, int] = {}

    def mallopt(self, name: int, value: int) -> int:
        self.calls[name] = value
        return 1


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    found = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: found)
    return found


@on_linux
def test_tensors_stay_on_the_heap_and_the_heap_stays(library: Library) -> None:
    keep_freed_memory()
    assert library.calls == {-3: 1 << 30, -1: (1 << 31) - 1}


@on_linux
def test_the_users_setting_stands(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    keep_freed_memory()
    assert not library.calls


def test_other_systems_are_left_alone(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    keep_freed_memory()
    assert not library.calls
