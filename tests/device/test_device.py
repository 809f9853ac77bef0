"""Where a run computes: what is promised of repeated runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from illama import device
from illama.device import only_repeatable
from illama.errors import UserError


def test_repeatable_products_that_come_too_late_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuBLAS looks into the environment once: a notebook that has multiplied before cannot begin."""

    def refused(where: torch.device) -> None:
        raise RuntimeError("... set the environment variable CUBLAS_WORKSPACE_CONFIG=:4096:8 ... (torch)")

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setattr(device, "_multiply", refused)
    late = pytest.raises(UserError, match=r"comes too late.*CUBLAS_WORKSPACE_CONFIG=:4096:8")
    with late, only_repeatable(True, torch.device("cuda")):
        pytest.fail("it began")
    assert not torch.are_deterministic_algorithms_enabled()
    with only_repeatable(False, torch.device("cuda")), only_repeatable(True, torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # what the user has set stays

    def broken(where: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(device, "_multiply", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"), only_repeatable(True, torch.device("cuda")):
        pytest.fail("it began")


def test_a_command_asks_before_its_first_product() -> None:
    script = (
        "import os; from illama.cli.main import main; main(['version']); print(os.environ['CUBLAS_WORKSPACE_CONFIG'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ":4096:8"
