"""`illama --install-completion`: a script of the shell's that knows the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from illama.cli.main import COMMANDS, main


def test_bash_learns_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/bash")
    assert main(["--install-completion"]) == 0
    (script,) = [path for path in tmp_path.rglob("*") if path.is_file() and path.name == "illama"]
    assert set(COMMANDS) <= set(script.read_text().replace('"', " ").replace("'", " ").split())
