"""The command line in this process, and a saved model to use it on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from illama.cli.main import main
from tests.evaluation.conftest import digits_run

__all__ = ["digits_run"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; returns (exit code, stdout, stderr)."""

    def command(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return command
